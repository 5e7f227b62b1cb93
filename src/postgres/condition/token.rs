//! A condition's text → tokens, as Postgres would part it.

use super::tree::ConditionError;

/// A token and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// From 1, in characters.
    pub(super) position: usize,
    pub(super) kind: TokenKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// An unquoted word, in lower case, as Postgres folds it.
    Word(String),
    /// A quoted name.
    Name(String),
    /// `'text'`.
    Text(String),
    /// A number, with its sign.
    Number(String),
    /// An operator or a punctuation mark.
    Sign(&'static str),
    /// The end of the text.
    End,
}

impl TokenKind {
    /// The token for a message; a literal is not repeated.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Name(name) => format!("\"{name}\""),
            Self::Text(_) => "a text".to_owned(),
            Self::Number(_) => "a number".to_owned(),
            Self::Sign(sign) => (*sign).to_owned(),
            Self::End => "its end".to_owned(),
        }
    }
}

/// Longest first, so that `<=` is not taken for `<`.
const SIGNS: &[&str] = &["<=", ">=", "<>", "!=", "=", "<", ">", "(", ")", ",", "+", "-"];

/// The text's tokens, the last of which is [`TokenKind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ConditionError> {
    let mut characters = Characters {
        rest: text,
        position: 1,
    };
    let mut tokens = Vec::new();
    loop {
        characters.take_while(char::is_whitespace);
        let position = characters.position;
        let kind = characters.token()?;
        let ended = kind == TokenKind::End;
        tokens.push(Token { position, kind });
        if ended {
            return Ok(tokens);
        }
    }
}

struct Characters<'a> {
    rest: &'a str,
    position: usize,
}

impl<'a> Characters<'a> {
    fn token(&mut self) -> Result<TokenKind, ConditionError> {
        let Some(first) = self.rest.chars().next() else {
            return Ok(TokenKind::End);
        };
        match first {
            '\'' => self
                .quoted('\'', "a text begins here that has no end")
                .map(TokenKind::Text),
            '"' => self
                .quoted('"', "a name begins here that has no end")
                .map(TokenKind::Name),
            '0'..='9' | '.' => Ok(TokenKind::Number(self.number())),
            _ if first.is_alphabetic() || first == '_' => {
                let word = self.take_while(|c| c.is_alphanumeric() || c == '_' || c == '$');
                // E'…', U&'…' and X'…' are texts of another spelling.
                if self.rest.starts_with('\'') && word.len() <= 1 {
                    return Err(self.unexpected(word.to_owned(), "write the text as 'text'"));
                }
                Ok(TokenKind::Word(word.to_ascii_lowercase()))
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| self.rest.starts_with(**sign));
                let sign = sign.ok_or_else(|| self.unexpected(first.to_string(), "this sign has no meaning here"))?;
                self.skip(sign.len());
                Ok(TokenKind::Sign(sign))
            }
        }
    }

    /// A text or name in quotes, which are doubled inside of it.
    fn quoted(&mut self, quote: char, unended: &'static str) -> Result<String, ConditionError> {
        let start = self.unexpected(quote.to_string(), unended);
        self.skip(1);
        let mut text = String::new();
        loop {
            text.push_str(self.take_while(|c| c != quote));
            if self.rest.is_empty() {
                return Err(start);
            }
            self.skip(1);
            if !self.rest.starts_with(quote) {
                return Ok(text);
            }
            self.skip(1);
            text.push(quote);
        }
    }

    fn number(&mut self) -> String {
        let mut number = self.take_while(|c| c.is_ascii_digit() || c == '.').to_owned();
        let exponent = self.rest.strip_prefix(['e', 'E']).unwrap_or_default();
        if exponent
            .strip_prefix(['+', '-'])
            .unwrap_or(exponent)
            .starts_with(|c: char| c.is_ascii_digit())
        {
            number.push('e');
            self.skip(1);
            number.push_str(self.take_while(|c| c.is_ascii_digit() || c == '+' || c == '-'));
        }
        number
    }

    fn take_while(&mut self, is: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !is(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.position += taken.chars().count();
        taken
    }

    /// Skips ASCII characters.
    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
        self.position += bytes;
    }

    fn unexpected(&self, found: String, expected: &'static str) -> ConditionError {
        ConditionError::Unexpected {
            position: self.position,
            found,
            expected,
        }
    }
}

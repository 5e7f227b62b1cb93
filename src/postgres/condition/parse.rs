//! Tokens → a condition's tree, by recursive descent. The grammar is in the header of the room.

use super::token::{Token, TokenKind};
use super::tree::{Comparison, ConditionError, DEEPEST, Direction, Expression, Moment, Test, Value};

/// Words that are no columns unless they are quoted.
const KEYWORDS: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "between",
    "case",
    "cast",
    "current_date",
    "current_timestamp",
    "exists",
    "false",
    "ilike",
    "in",
    "interval",
    "is",
    "like",
    "not",
    "null",
    "or",
    "row",
    "select",
    "similar",
    "true",
];

pub(super) fn parse(tokens: &[Token]) -> Result<Expression, ConditionError> {
    let mut parser = Parser { tokens, depth: 0 };
    let expression = parser.any()?;
    match parser.kind() {
        TokenKind::End => Ok(expression),
        _ => Err(parser.unexpected("AND, OR or the end has to follow")),
    }
}

struct Parser<'a> {
    /// The tokens that are not read yet; the end is never taken out.
    tokens: &'a [Token],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<Expression, ConditionError> {
        let mut parts = vec![self.all()?];
        while self.takes_word("or") {
            parts.push(self.all()?);
        }
        Ok(joined(parts, Expression::Or))
    }

    fn all(&mut self) -> Result<Expression, ConditionError> {
        let mut parts = vec![self.single()?];
        while self.takes_word("and") {
            parts.push(self.single()?);
        }
        Ok(joined(parts, Expression::And))
    }

    fn single(&mut self) -> Result<Expression, ConditionError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(ConditionError::TooDeep);
        }
        let expression = if self.takes_word("not") {
            Expression::Not(Box::new(self.single()?))
        } else if self.takes_sign("(") {
            let inner = self.any()?;
            self.expect_sign(")", "a closing parenthesis has to follow")?;
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn test(&mut self) -> Result<Expression, ConditionError> {
        let column = self.column()?;
        let is_not = self.takes_word("not");
        let test = match self.kind() {
            TokenKind::Sign(sign) if !is_not => match comparison(sign) {
                Some(comparison) => {
                    self.skip();
                    Test::Compare(comparison, self.value()?)
                }
                None => Test::Holds,
            },
            TokenKind::Word(word) => match word.as_str() {
                "is" if !is_not => return self.is_test(column),
                "in" => {
                    self.skip();
                    Test::In(self.list()?)
                }
                "between" => {
                    self.skip();
                    let least = self.value()?;
                    if !self.takes_word("and") {
                        return Err(self.unexpected("BETWEEN needs AND and a second value"));
                    }
                    Test::Between(least, self.value()?)
                }
                "like" | "ilike" => {
                    let any_case = word == "ilike";
                    self.skip();
                    let pattern = self.text("a pattern has to follow, as 'a%'")?;
                    Test::Like { pattern, any_case }
                }
                "and" | "or" if !is_not => Test::Holds,
                _ => {
                    return Err(
                        self.unexpected("a comparison, IN, BETWEEN, LIKE, ILIKE or IS has to follow the column")
                    );
                }
            },
            TokenKind::End if !is_not => Test::Holds,
            _ => return Err(self.unexpected("a comparison, IN, BETWEEN, LIKE, ILIKE or IS has to follow the column")),
        };
        let test = Expression::Test { column, test };
        Ok(if is_not { Expression::Not(Box::new(test)) } else { test })
    }

    fn is_test(&mut self, column: String) -> Result<Expression, ConditionError> {
        self.skip();
        let is_not = self.takes_word("not");
        let test = if self.takes_word("null") {
            Test::IsNull
        } else if self.takes_word("true") {
            Test::Is(true)
        } else if self.takes_word("false") {
            Test::Is(false)
        } else {
            return Err(self.unexpected("NULL, TRUE or FALSE has to follow IS"));
        };
        let test = Expression::Test { column, test };
        Ok(if is_not { Expression::Not(Box::new(test)) } else { test })
    }

    fn column(&mut self) -> Result<String, ConditionError> {
        let column = match self.kind() {
            TokenKind::Name(name) => name.clone(),
            TokenKind::Word(word) if !KEYWORDS.contains(&word.as_str()) => word.clone(),
            _ => return Err(self.unexpected("a column of the table has to stand here")),
        };
        self.skip();
        if *self.kind() == TokenKind::Sign("(") {
            return Err(self.unexpected("functions are not allowed"));
        }
        Ok(column)
    }

    fn list(&mut self) -> Result<Vec<Value>, ConditionError> {
        self.expect_sign("(", "IN needs a list of literals in parentheses")?;
        let mut values = vec![self.value()?];
        while self.takes_sign(",") {
            values.push(self.value()?);
        }
        self.expect_sign(")", "a comma or a closing parenthesis has to follow")?;
        Ok(values)
    }

    fn value(&mut self) -> Result<Value, ConditionError> {
        const EXPECTED: &str = "a number, a 'text', TRUE, FALSE or now() has to stand here (with no cast: a literal is read as the column's type)";
        let sign = match self.kind() {
            TokenKind::Sign(sign @ ("-" | "+")) => Some(*sign),
            _ => None,
        };
        if let Some(sign) = sign {
            self.skip();
            let TokenKind::Number(number) = self.kind() else {
                return Err(self.unexpected("a number has to follow"));
            };
            let number = if sign == "-" {
                format!("-{number}")
            } else {
                number.clone()
            };
            self.skip();
            return Ok(Value::Literal(number));
        }
        let value = match self.kind() {
            TokenKind::Text(text) | TokenKind::Number(text) => Value::Literal(text.clone()),
            TokenKind::Word(word) => match word.as_str() {
                "true" | "false" => Value::Literal(word.clone()),
                "now" | "current_timestamp" | "current_date" => return self.moment(),
                "null" => return Err(self.unexpected("nothing equals NULL: write IS NULL")),
                _ => return Err(self.unexpected(EXPECTED)),
            },
            _ => return Err(self.unexpected(EXPECTED)),
        };
        self.skip();
        Ok(value)
    }

    fn moment(&mut self) -> Result<Value, ConditionError> {
        let moment = if self.takes_word("now") {
            self.expect_sign("(", "now has to be written now()")?;
            self.expect_sign(")", "now has to be written now()")?;
            Moment::Now
        } else if self.takes_word("current_timestamp") {
            Moment::Now
        } else {
            self.skip();
            Moment::Today
        };
        let direction = if self.takes_sign("-") {
            Some(Direction::Earlier)
        } else if self.takes_sign("+") {
            Some(Direction::Later)
        } else {
            None
        };
        let interval = match direction {
            None => None,
            Some(direction) => {
                if !self.takes_word("interval") {
                    return Err(self.unexpected("an interval has to follow, as INTERVAL '1 day'"));
                }
                Some((direction, self.text("an interval has to follow, as INTERVAL '1 day'")?))
            }
        };
        Ok(Value::Moment { moment, interval })
    }

    fn text(&mut self, expected: &'static str) -> Result<String, ConditionError> {
        let TokenKind::Text(text) = self.kind() else {
            return Err(self.unexpected(expected));
        };
        let text = text.clone();
        self.skip();
        Ok(text)
    }

    fn kind(&self) -> &'a TokenKind {
        self.tokens.first().map_or(&TokenKind::End, |token| &token.kind)
    }

    fn skip(&mut self) {
        if let [_, rest @ ..] = self.tokens
            && !rest.is_empty()
        {
            self.tokens = rest;
        }
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        let takes = matches!(self.kind(), TokenKind::Word(word) if word == wanted);
        if takes {
            self.skip();
        }
        takes
    }

    fn takes_sign(&mut self, wanted: &str) -> bool {
        let takes = matches!(self.kind(), TokenKind::Sign(sign) if *sign == wanted);
        if takes {
            self.skip();
        }
        takes
    }

    fn expect_sign(&mut self, wanted: &str, expected: &'static str) -> Result<(), ConditionError> {
        if self.takes_sign(wanted) {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn unexpected(&self, expected: &'static str) -> ConditionError {
        ConditionError::Unexpected {
            position: self.tokens.first().map_or(0, |token| token.position),
            found: self.kind().shown(),
            expected,
        }
    }
}

fn joined(mut parts: Vec<Expression>, join: impl FnOnce(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            join(parts)
        }
    }
}

fn comparison(sign: &str) -> Option<Comparison> {
    Some(match sign {
        "=" => Comparison::Equal,
        "<>" | "!=" => Comparison::Different,
        "<" => Comparison::Less,
        "<=" => Comparison::LessOrEqual,
        ">" => Comparison::Greater,
        ">=" => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

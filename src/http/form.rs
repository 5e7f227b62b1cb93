//! Forms of the type `multipart/form-data`, checked piece by piece while they pass through.
//!
//! Only the names of the parts matter: none may be a parameter that controls the call. So whatever two readers could
//! understand in two ways is refused: other line breaks, a second name, text before the first part or after the last.

/// Longest head of a part.
const MAX_HEAD: usize = 4096;
/// Longest boundary; RFC 2046 allows 70 characters, some clients use more.
const MAX_BOUNDARY: usize = 200;
/// Most bytes after the last delimiter: a line break or two.
const MAX_END: usize = 4;

/// Why a form does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    #[error("the body is no form of the type multipart/form-data")]
    Malformed,
    #[error("the form has a part that is not passed on")]
    Part,
    #[error("the form ends before its end")]
    Cut,
}

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The first delimiter, without its line break.
    Start,
    /// A part's head, up to its empty line.
    Head,
    /// A part's content, up to the next delimiter.
    Content,
    /// After the last delimiter.
    End,
}

/// Reads a form.
#[derive(Debug)]
pub(super) struct FormCheck {
    /// A line break, two hyphens and the boundary.
    delimiter: Vec<u8>,
    names: &'static [&'static str],
    place: Place,
    /// Bytes that are not judged yet.
    held: Vec<u8>,
    after_end: usize,
}

/// The boundary in a header `Content-Type`, if it is the one of a form.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let mut parts = content_type.split(';');
    if !parts.next()?.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut found = None;
    for parameter in parts {
        let (name, value) = parameter.trim().split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("boundary") {
            continue;
        }
        if found.is_some() {
            return None;
        }
        let value = value.trim();
        found = Some(
            value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value),
        );
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
    found.filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()) && boundary.bytes().all(plain))
}

impl FormCheck {
    /// A check of a form whose parts may have these names.
    pub(super) fn new(boundary: &str, names: &'static [&'static str]) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            names,
            place: Place::Start,
            held: Vec::new(),
            after_end: 0,
        }
    }

    /// Takes the next bytes; returns those that may pass.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, FormError> {
        self.held.extend_from_slice(bytes);
        let mut passed = 0;
        while let Some(length) = self.step(passed)? {
            passed += length;
        }
        Ok(self.held.drain(..passed).collect())
    }

    /// Whether the form was whole.
    pub(super) const fn end(&self) -> Result<(), FormError> {
        match self.place {
            Place::End => Ok(()),
            Place::Start | Place::Head | Place::Content => Err(FormError::Cut),
        }
    }

    /// Judges what is held from `from` on: how many bytes pass; `None`: more are needed.
    fn step(&mut self, from: usize) -> Result<Option<usize>, FormError> {
        let held = self.held.get(from..).unwrap_or_default();
        match self.place {
            Place::Start => {
                let first = self.delimiter.get(2..).unwrap_or_default();
                if held.len() < first.len() + 2 {
                    return Ok(None);
                }
                let rest = held.strip_prefix(first).ok_or(FormError::Malformed)?;
                if !rest.starts_with(b"\r\n") {
                    return Err(FormError::Malformed);
                }
                let length = first.len() + 2;
                self.place = Place::Head;
                Ok(Some(length))
            }
            Place::Head => {
                let Some(end) = find(held, b"\r\n\r\n") else {
                    return if held.len() > MAX_HEAD {
                        Err(FormError::Malformed)
                    } else {
                        Ok(None)
                    };
                };
                if end > MAX_HEAD {
                    return Err(FormError::Malformed);
                }
                let name = part_name(held.get(..end).unwrap_or_default()).ok_or(FormError::Malformed)?;
                if !self.names.contains(&name.as_str()) {
                    return Err(FormError::Part);
                }
                self.place = Place::Content;
                // The line break that ends the head may also be the one that begins the next delimiter.
                Ok(Some(end + 2))
            }
            Place::Content => self.content(from),
            Place::End => {
                let length = held.len();
                self.after_end += length;
                if self.after_end > MAX_END || !held.iter().all(|byte| b"\r\n".contains(byte)) {
                    return Err(FormError::Malformed);
                }
                Ok((length > 0).then_some(length))
            }
        }
    }

    /// Passes content up to the next delimiter, and the delimiter.
    fn content(&mut self, from: usize) -> Result<Option<usize>, FormError> {
        let held = self.held.get(from..).unwrap_or_default();
        // Some readers take a bare line feed before the delimiter, so that is looked for.
        let mark = self.delimiter.get(1..).unwrap_or_default();
        let Some(at) = find(held, mark) else {
            // The end may be the beginning of a delimiter.
            let kept = self.delimiter.len();
            return Ok(held.len().checked_sub(kept).filter(|&length| length > 0));
        };
        let after = held.get(at + mark.len()..).unwrap_or_default();
        let Some(next) = after.get(..2) else {
            return Ok(None);
        };
        if at == 0 || held.get(at - 1) != Some(&b'\r') {
            return Err(FormError::Malformed);
        }
        self.place = match next {
            b"\r\n" => Place::Head,
            b"--" => Place::End,
            _ => return Err(FormError::Malformed),
        };
        Ok(Some(at + mark.len() + 2))
    }
}

/// The name of a part, if its head is written as every reader understands it.
fn part_name(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let mut name = None;
    for line in head.split("\r\n") {
        let (header, value) = line.split_once(':')?;
        if value.contains(|character: char| character.is_control() && character != '\t') {
            return None;
        }
        let header = header.to_ascii_lowercase();
        if header == "content-disposition" {
            if name.replace(disposition_name(value.trim())?).is_some() {
                return None;
            }
        } else if header == "content-transfer-encoding" {
            let plain = ["binary", "8bit", "7bit"];
            plain.iter().find(|known| value.trim().eq_ignore_ascii_case(known))?;
        } else if !matches!(header.as_str(), "content-type" | "content-length") {
            return None;
        }
    }
    name
}

/// The name in a `Content-Disposition`: exactly one, in quotes or a plain word.
fn disposition_name(value: &str) -> Option<String> {
    let mut rest = value.strip_prefix("form-data")?.trim_start();
    let mut name = None;
    while !rest.is_empty() {
        let parameter = rest.strip_prefix(';')?.trim_start();
        let (key, after) = parameter.split_once('=')?;
        let key = key.trim().to_ascii_lowercase();
        let (text, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted_text(quoted)?,
            None => after.split_at(after.find(';').unwrap_or(after.len())),
        };
        match key.as_str() {
            "name" => {
                let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !plain || name.replace(text.to_owned()).is_some() {
                    return None;
                }
            }
            "filename" | "filename*" => {}
            _ => return None,
        }
        rest = left.trim_start();
    }
    name
}

/// A text in quotes, as it stands there, and what follows it.
fn quoted_text(quoted: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, character) in quoted.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((quoted.get(..at)?, quoted.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|&byte| byte == first)?;
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &["messaging_product", "file"];

    fn checked(body: &[u8], step: usize) -> Result<Vec<u8>, FormError> {
        let mut check = FormCheck::new("b", NAMES);
        let mut passed = Vec::new();
        for bytes in body.chunks(step) {
            passed.extend(check.push(bytes)?);
        }
        check.end()?;
        passed.extend(std::mem::take(&mut check.held));
        Ok(passed)
    }

    #[test]
    fn a_form_passes_byte_for_byte_however_it_is_cut() {
        for body in [
            &b"--b\r\nContent-Disposition: form-data; name=\"messaging_product\"\r\n\r\nwhatsapp\r\n--b\r\n\
              content-disposition: form-data; name=file; filename=\"a \\\"b\\\".png\"; filename*=UTF-8''x\r\nContent-Type: image/png\r\n\
              Content-Length: 5\r\n\r\n\x89P\r\n--\r\n-b\n--c\r\n--b--\r\n"[..],
            b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n\r\n--b--",
            b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n--b--\r\n",
        ] {
            for step in 1..body.len() {
                assert_eq!(checked(body, step).as_deref(), Ok(body), "{step}");
            }
        }
    }

    #[test]
    fn other_parts_and_whatever_can_be_read_in_two_ways_does_not_pass() {
        let part = |head: &str| format!("--b\r\n{head}\r\n\r\nx\r\n--b--\r\n");
        for body in [
            part("Content-Disposition: form-data; name=\"access_token\""),
            part("Content-Disposition: form-data; name=\"ACCESS_TOKEN\""),
            part("Content-Disposition: form-data; name=\"method\""),
            part("Content-Disposition: form-data; name=\" file\""),
            part("Content-Disposition: form-data; name=\"file\"; name=\"method\""),
            part("Content-Disposition: form-data; name*=UTF-8''method; name=\"file\""),
            part("Content-Disposition: form-data; filename=\"x\""),
            part("Content-Disposition: form-data; name=\"file\"\nContent-Disposition: form-data; name=\"method\""),
            part("Content-Disposition: form-data; name=\"file\"\r\nContent-Disposition: form-data; name=\"method\""),
            part("Content-Disposition: form-data;\r\n name=\"file\""),
            part("Content-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=\"file\""),
            part("X-Other: 1\r\nContent-Disposition: form-data; name=\"file\""),
            part("Content-Type: text/plain"),
            part("Content-Disposition: form-data; name=\"file\"").replace("\r\n--b--", "\n--b--"),
            part("Content-Disposition: form-data; name=\"file\"").replace("\r\n--b--", "\r\n--bc"),
            format!("x\r\n{}", part("Content-Disposition: form-data; name=\"file\"")),
            format!("{}method=post", part("Content-Disposition: form-data; name=\"file\"")),
            "--b--".to_owned(),
            "--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx".to_owned(),
            String::new(),
        ] {
            for step in [1, 7, 10_000] {
                assert!(checked(body.as_bytes(), step).is_err(), "{body:?}");
            }
        }
        let long = part(&format!(
            "Content-Disposition: form-data; name=\"file\"; filename=\"{}\"",
            "x".repeat(5000)
        ));
        assert_eq!(checked(long.as_bytes(), 100), Err(FormError::Malformed));
    }

    #[test]
    fn there_is_one_boundary() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=x-y", Some("x-y")),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"x y\"", None),
            ("multipart/form-data; charset=utf-8; boundary=\"x=y\"", Some("x=y")),
            ("multipart/form-data; boundary=a; boundary=b", None),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("application/json; boundary=a", None),
        ] {
            assert_eq!(boundary(content_type), expected, "{content_type}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(body in "[-b\r\n\":;=a-z]{0,80}") {
            let _ = checked(body.as_bytes(), 3);
            let _ = boundary(&body);
        }
    }
}

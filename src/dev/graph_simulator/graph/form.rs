//! Forms of the type `multipart/form-data`, in which media are uploaded.

/// A part of a form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) content_type: Option<&'a str>,
    pub(super) content: &'a [u8],
}

/// The boundary that the header `Content-Type` names, if it is the one of a form.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    let boundary = parameters
        .split(';')
        .find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
    let boundary = boundary.trim_matches('"');
    (kind.trim().eq_ignore_ascii_case("multipart/form-data") && !boundary.is_empty()).then_some(boundary)
}

/// The parts of a form (RFC 7578). Bytes that are no well-formed part are left out.
pub(super) fn parts<'a>(body: &'a [u8], boundary: &str) -> Vec<Part<'a>> {
    // The first delimiter may stand at the very beginning, without its line break.
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..]).unwrap_or_default();
    let mut parts = Vec::new();
    while let Some(end) = find(rest, delimiter.as_bytes()) {
        parts.extend(part(&rest[..end]));
        rest = &rest[end + delimiter.len()..];
    }
    parts
}

fn part(bytes: &[u8]) -> Option<Part<'_>> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let line = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let (_, name) = line("content-disposition")?.split_once("; name=\"")?;
    Some(Part {
        name: name.split('"').next()?,
        content_type: line("content-type"),
        content: &bytes[end + 4..],
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_apart() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"messaging_product\"\r\n\r\nwhatsapp\r\n--b\r\n\
            content-disposition: form-data; name=\"file\"; filename=\"x.png\"\r\nContent-Type: image/png\r\n\r\n\x89P\r\n--\r\n--b--\r\n";
        let found = parts(body, "b");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            (found[0].name, found[0].content),
            ("messaging_product", &b"whatsapp"[..])
        );
        assert_eq!(found[1].content_type, Some("image/png"));
        assert_eq!(found[1].content, b"\x89P\r\n--");
        assert_eq!(
            boundary("multipart/form-data; charset=x; boundary=\"a b\""),
            Some("a b")
        );
        assert_eq!(boundary("application/json"), None);
        for junk in [&b""[..], b"--b", b"--b--", b"--b\r\n\r\n\r\n--b--", b"x--b\r\n"] {
            assert_eq!(parts(junk, "b"), [], "{junk:?}");
        }
    }
}

//! The version of Meta's API whose format a request is in: `v26.0`.

use std::fmt;

/// `vN.M`, the first segment of a call's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiVersion(String);

impl ApiVersion {
    /// Accepts `v`, one to three digits, a dot, one to three digits, and nothing else, so that it is safe in a path.
    #[must_use]
    pub fn parse(segment: &str) -> Option<Self> {
        let digits = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let (major, minor) = segment.strip_prefix('v')?.split_once('.')?;
        (digits(major) && digits(minor)).then(|| Self(segment.to_owned()))
    }

    /// As Meta writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_other_paths() {
        for version in ["v26.0", "v1.0", "v100.12"] {
            assert_eq!(
                ApiVersion::parse(version).as_ref().map(ApiVersion::as_str),
                Some(version)
            );
        }
        for other in [
            "v1", "26.0", "v26", "v.0", "v26.", "v26.0.1", "vx.y", "v2600.0", "", "webhook",
        ] {
            assert_eq!(ApiVersion::parse(other), None, "{other}");
        }
    }
}

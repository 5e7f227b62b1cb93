//! Meta's error codes: the HTTP status that goes with each, and its title.

/// The status that Meta used to answer a code with; the code is what counts.
pub(super) const fn http_status(code: i64) -> u16 {
    match code {
        0 | 190 => 401,
        10 | 200..=299 | 368 | 130_497 | 131_005 | 131_031 => 403,
        132_001 => 404,
        130_429 | 80_007 => 429,
        3 | 131_000 | 131_016 | 131_045 | 131_057 => 500,
        2 | 133_004 => 503,
        _ => 400,
    }
}

/// Meta's title of a code.
pub(super) const fn title(code: i64) -> &'static str {
    match code {
        4 => "Application request limit reached",
        100 => "Invalid parameter",
        130_429 => "Rate limit hit",
        130_472 => "User's number is part of an experiment",
        131_000 => "Something went wrong",
        131_008 => "Required parameter is missing",
        131_009 => "Parameter value is not valid",
        131_016 => "Service unavailable",
        131_026 => "Message undeliverable",
        131_031 => "Business Account locked",
        131_042 => "Business eligibility payment issue",
        131_047 => "Re-engagement message",
        131_048 => "Spam rate limit hit",
        131_049 => "This message was not delivered to maintain healthy ecosystem engagement.",
        131_053 => "Media upload error",
        131_056 => "(Business Account, Consumer Account) pair rate limit hit",
        131_057 => "Account in maintenance mode",
        132_001 => "Template name does not exist in the translation",
        132_015 => "Template is Paused",
        132_016 => "Template is Disabled",
        133_004 => "Server Temporarily Unavailable",
        _ => "Unknown error",
    }
}

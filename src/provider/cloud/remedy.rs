//! What a person can do about a code for which Meta refuses to send for a number at all, or one of its templates.

/// A sentence, to be put after Meta's own.
#[must_use]
pub fn remedy(code: i32) -> &'static str {
    match code {
        0 | 190 => {
            "its access token is expired, revoked or not valid: put a new one into whatsapp.accounts.access_token and restart \
             twinlog"
        }
        3 | 10 | 200..=299 | 131_005 => {
            "its access token lacks a permission: give the token's user whatsapp_business_messaging for the WhatsApp Business \
             account, make a new token if that changes it, and restart twinlog"
        }
        33 | 100 => {
            "the number does not exist or is not the token's: compare whatsapp.accounts.phone_number_id and access_token with \
             Meta's WhatsApp Manager"
        }
        131_042 => "add or mend the payment method of the WhatsApp Business account in Meta's Business settings",
        133_010 => {
            "register the number: POST /{phone_number_id}/register with its two-step PIN, through twinlog or Meta"
        }
        131_045 => "its certificate is not valid: register the number again in Meta's WhatsApp Manager",
        131_037 => "its display name is not approved: see Meta's WhatsApp Manager",
        131_048 | 131_064 => {
            "Meta restricts it because people report its messages or a template is of the wrong category: see its quality in \
             Meta's WhatsApp Manager"
        }
        368 | 131_031 => "the account is restricted or locked: see Account Quality in Meta's Business settings",
        134_011 => "accept Meta's terms for payments in the WhatsApp Manager",
        _ => "see the number in Meta's WhatsApp Manager",
    }
}

/// Whether Meta refuses a template or a flow with this code until somebody acts, or Meta ends the pause: it is paused, disabled,
/// blocked or throttled. (A template that does not exist, or lacks a parameter, is the mistake of one request.)
#[must_use]
pub const fn stops_template(code: i32) -> bool {
    matches!(code, 132_015 | 132_016 | 132_068 | 132_069)
}

//! What errors of the Agent DB say, and what they never show.

use super::*;

fn refused(sqlstate: &str, message: &str) -> AgentError {
    AgentError::Refused {
        action: "write rows",
        table: Some(TableName::new("public", "leads")),
        refusal: Box::new(Refusal {
            sqlstate: sqlstate.into(),
            message: message.into(),
            constraint: Some("leads_wa_id_key".into()),
            column: None,
            raised_by: crate::postgres::RaisedBy::Server,
        }),
        role: Some("crm daemon".into()),
    }
}

#[test]
fn a_row_error_never_shows_the_servers_message() {
    let text = refused("22P02", "invalid input syntax for type integer: \"secret\"").to_string();
    assert!(!text.contains("secret"), "{text}");
    assert!(
        text.contains("22P02") && text.contains("leads_wa_id_key") && text.contains("public.leads"),
        "{text}"
    );
}

#[test]
fn a_systemic_error_says_what_the_server_said_and_what_to_paste() {
    let error = refused("42501", "permission denied for table leads");
    assert_eq!(error.disposition(), Disposition::Systemic);
    assert!(error.to_string().contains("permission denied for table leads"));
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains(r#"ON "public"."leads" TO "crm daemon";"#))
    );
}

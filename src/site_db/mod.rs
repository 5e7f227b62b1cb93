//! The server's statements on the Site DB.
//!
//! | module | its job |
//! |---|---|
//! | [`locks`] | advisory locks on things that have no row yet |
//! | [`links`] | the lead and the conversation that every message belongs to |
//! | [`statuses`] | what Meta reports of our messages, folded into their rows |

pub mod links;
pub mod locks;
pub mod statuses;

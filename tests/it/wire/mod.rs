//! `wire`: the replication connection on real servers, and on scripted ones where a real one would not misbehave.
//!
//! | file | what is in it |
//! |---|---|
//! | `login` | reaching a server and being let in |
//! | `real`, `stream`, `refusals` | the stream of a real server: short ways to it, what arrives, what is refused |
//! | `fake` | a scripted server |

mod fake;
mod login;
mod real;
mod refusals;
mod stream;

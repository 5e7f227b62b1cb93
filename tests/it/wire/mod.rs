//! `wire`: the replication connection on real servers, and on scripted ones where a real one would not misbehave.

mod fake;
mod login;
mod stream;

//! What must hold for any bytes that a server sends: the check of the fuzz target `wire_codec`.
//!
//! It is in this module because the codec is private. Compiled only for the tests and for `cargo fuzz`, which sets
//! `cfg(fuzzing)`.

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;

use super::codec::{self, Answer, Frame, Identity, Streamed};
use super::error::{Phase, WireError};

/// What was taken off the buffer, as far as it can be compared.
#[derive(Debug, PartialEq)]
enum Taken {
    Frame(Frame),
    CopyBoth,
    Error(String),
    Values(Vec<Option<String>>),
    Message,
}

/// Reads `data` as the server's side of a connection, once whole and once in pieces: the same is taken, and nothing that is
/// complete is left behind. The first byte is the length of the pieces.
///
/// # Panics
/// The codec breaks one of these rules.
pub fn check(data: &[u8]) {
    let Some((&step, stream)) = data.split_first() else {
        return;
    };
    for take in [streamed, answer] {
        let whole = take_all(stream, stream.len(), take);
        let pieces = take_all(stream, usize::from(step), take);
        assert_eq!(whole, pieces, "pieces of {step} bytes are read differently");
    }
}

fn take_all(
    stream: &[u8],
    step: usize,
    take: impl Fn(&mut BytesMut) -> Result<Option<Taken>, WireError>,
) -> Vec<Taken> {
    let mut buffer = BytesMut::new();
    let mut taken = Vec::new();
    for piece in stream.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match take(&mut buffer) {
                Ok(Some(message)) => {
                    assert!(
                        buffer.len() < before,
                        "something was taken, and the buffer is as long as before"
                    );
                    taken.push(message);
                }
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "nothing was taken, and bytes are gone");
                    assert!(!holds_a_message(&buffer), "a complete message is left behind");
                    break;
                }
                Err(error) => {
                    taken.push(Taken::Error(error.to_string()));
                    return taken;
                }
            }
        }
    }
    taken
}

/// Whether a message is there completely, by its header alone: a tag, and a length that counts itself.
fn holds_a_message(buffer: &[u8]) -> bool {
    match buffer {
        [_, a, b, c, d, rest @ ..] => u32::from_be_bytes([*a, *b, *c, *d]) as usize <= rest.len() + 4,
        _ => false,
    }
}

fn streamed(buffer: &mut BytesMut) -> Result<Option<Taken>, WireError> {
    codec::take_streamed(buffer)?
        .map(|streamed| match streamed {
            Streamed::Frame(frame) => Ok(Taken::Frame(frame)),
            Streamed::Message(message) => of_message(&message),
        })
        .transpose()
}

fn answer(buffer: &mut BytesMut) -> Result<Option<Taken>, WireError> {
    codec::take_answer(buffer)?
        .map(|answer| match answer {
            Answer::CopyBoth => Ok(Taken::CopyBoth),
            Answer::Message(message) => of_message(&message),
        })
        .transpose()
}

fn of_message(message: &Message) -> Result<Taken, WireError> {
    let error = |fields| {
        let identity = Identity {
            user: "twinlog".to_owned(),
            database: "crm".to_owned(),
        };
        Taken::Error(codec::server_error(fields, Phase::Stream, &identity).to_string())
    };
    Ok(match message {
        Message::ErrorResponse(body) => error(body.fields()),
        Message::NoticeResponse(body) => error(body.fields()),
        Message::DataRow(row) => Taken::Values(codec::row_values(row)?),
        _ => Taken::Message,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kept_inputs_of_the_fuzz_target_pass() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/wire_codec");
        let mut inputs = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            super::check(&std::fs::read(file.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{folder} is empty");
    }
}

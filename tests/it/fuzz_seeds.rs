//! The kept inputs of the fuzz targets (`fuzz/corpus`), without a fuzzer: the checks behind the targets compile and hold.

#[path = "../../fuzz/fuzz_targets/checks.rs"]
mod checks;

fn every_input_of(target: &str, check: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        check(&std::fs::read(file.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{folder} is empty");
}

#[test]
fn the_kept_payloads_of_pgoutput_pass() {
    every_input_of("pgoutput", checks::pgoutput);
}

#[test]
fn the_kept_webhooks_pass() {
    every_input_of("webhook", checks::webhook);
}

#[test]
fn the_kept_send_bodies_pass() {
    every_input_of("send_body", checks::send_body);
}

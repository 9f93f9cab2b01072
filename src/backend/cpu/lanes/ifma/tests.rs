#![allow(clippy::unwrap_used)]
use super::emulated::EmulatedIfma;
use super::super::suite::conforms;

#[test]
fn the_emulated_instruction_set_conforms() {
    conforms(EmulatedIfma);
}

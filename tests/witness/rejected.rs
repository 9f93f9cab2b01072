//! Inputs that a circuit does not accept, each refused with the signal's name.

use prover_worker::model::StopReason;
use prover_worker::witness::InputError;

use super::*;

/// Returns what is wrong with an input of `range_check`, according to one of its compilations.
fn refused(wasm: &str, input: &str) -> InputError {
    match generate(&own(wasm), input) {
        Err(WitnessError::Input(e)) => e,
        other => panic!("{wasm} {input}: {other:?}"),
    }
}

const AMOUNT: &str = r#""amount": [0,1,2,3,4,5,6,7,8,9,10,11]"#;

#[test]
fn an_unknown_signal_is_named() {
    for wasm in ["range_check.wasm", "range_check.circom-2.0.5.wasm", "range_check.circom-2.0.3.wasm"] {
        for input in [
            format!(r#"{{"nope": 1, {AMOUNT}, "ceiling": 70}}"#),
            format!(r#"{{{AMOUNT}, "ceiling": 70, "nope": 1}}"#),
            format!(r#"{{{AMOUNT}, "nope": [0, 1], "ceiling": 70}}"#),
            format!(r#"{{{AMOUNT}, "nope": [], "ceiling": 70}}"#),
            format!(r#"{{"nope": [[], []], {AMOUNT}, "ceiling": 70}}"#),
        ] {
            let e = refused(wasm, &input);
            assert_eq!(e, InputError::Unknown { signal: "nope".into() }, "{wasm} {input}");
        }
    }
    // The last two are signals of the first circom's program, but no inputs.
    for signal in ["nope", "c", "weight"] {
        let input = format!(r#"{{"a": 1, "b": 1, "k": [1, 1, 1], "{signal}": 1}}"#);
        assert_eq!(refused("multiplier_v1.wasm", &input), InputError::Unknown { signal: signal.into() });
    }
    let text = refused("multiplier.wasm", r#"{"a": 1, "b": 1, "c": 1}"#).to_string();
    assert_eq!(text, "signal not found: the circuit has no input signal c");
}

#[test]
fn the_wrong_number_of_values_is_told() {
    for wasm in ["range_check.wasm", "range_check.circom-2.0.5.wasm", "range_check.circom-2.0.3.wasm"] {
        let few = refused(wasm, r#"{"amount": [[0,1,2,3],[4,5,6,7],[8,9,10]], "ceiling": 70}"#);
        assert_eq!(few, InputError::NotEnough { signal: "amount".into(), expected: 12, got: 11 });
        assert_eq!(few.to_string(), "not enough values for input signal amount: expected 12, got 11");
        let many = refused(wasm, &format!(r#"{{{AMOUNT}, "ceiling": [70, 71]}}"#));
        assert_eq!(many, InputError::TooMany { signal: "ceiling".into(), expected: 1, got: 2 });
        assert_eq!(many.to_string(), "too many values for input signal ceiling: expected 1, got 2");
        let none = refused(wasm, &format!(r#"{{{AMOUNT}, "ceiling": []}}"#));
        assert_eq!(none, InputError::NotEnough { signal: "ceiling".into(), expected: 1, got: 0 });
        // As many values as the circuit takes, but some beyond the end of a signal or none for another.
        let shifted = refused(wasm, r#"{"amount": [1,2,3,4,5,6,7,8,9,10,11], "ceiling": [1000, 7]}"#);
        assert_eq!(shifted, InputError::NotEnough { signal: "amount".into(), expected: 12, got: 11 });
        let shifted = refused(wasm, r#"{"ceiling": [1000, 7], "amount": [1,2,3,4,5,6,7,8,9,10,11]}"#);
        assert_eq!(shifted, InputError::TooMany { signal: "ceiling".into(), expected: 1, got: 2 });
        let alone = refused(wasm, r#"{"ceiling": [1000,0,1,2,3,4,5,6,7,8,9,10,11]}"#);
        assert_eq!(alone, InputError::TooMany { signal: "ceiling".into(), expected: 1, got: 13 });
        let empty = refused(wasm, r#"{"amount": [], "ceiling": [1000]}"#);
        assert_eq!(empty, InputError::NotEnough { signal: "amount".into(), expected: 12, got: 0 });
    }
    let one = refused("multiplier_v1.wasm", r#"{"a": [3, 5], "k": [1, 0, 1]}"#);
    assert_eq!(one, InputError::TooMany { signal: "a".into(), expected: 1, got: 2 });
    let one = refused("multiplier_v1.wasm", r#"{"a": 3, "b": 5, "k": [1, 0]}"#);
    assert_eq!(one, InputError::NotEnough { signal: "k".into(), expected: 3, got: 2 });
}

#[test]
fn a_missing_signal_is_counted() {
    for wasm in ["range_check.wasm", "range_check.circom-2.0.5.wasm", "range_check.circom-2.0.3.wasm"] {
        let e = refused(wasm, &format!("{{{AMOUNT}}}"));
        assert_eq!(e, InputError::Incomplete { set: 12, total: 13 });
        assert_eq!(e.to_string(), "not all inputs have been set: only 12 out of 13");
        assert_eq!(refused(wasm, "{}"), InputError::Incomplete { set: 0, total: 13 });
    }
    assert_eq!(refused("multiplier_v1.wasm", r#"{"a": 1, "b": 2}"#), InputError::Unset { set: 2 });
}

#[test]
fn old_programs_refuse_values_in_taken_places() {
    let e = refused("range_check.circom-2.0.3.wasm", &format!(r#"{{"ceiling": [70, 1], {AMOUNT}}}"#));
    assert_eq!(e, InputError::TooMany { signal: "ceiling".into(), expected: 1, got: 2 });
    let e = refused("multiplier_v1.wasm", r#"{"a": [1, 2], "b": 1, "k": [1, 1, 1]}"#);
    assert_eq!(e, InputError::TooMany { signal: "a".into(), expected: 1, got: 2 });
    let e = refused("multiplier_v1.wasm", r#"{"k": [1, 1, 1, 9], "a": 2, "b": 1}"#);
    assert_eq!(e, InputError::TooMany { signal: "k".into(), expected: 3, got: 4 });
}

#[test]
fn a_failed_assert_gives_circoms_trace() {
    for wasm in ["range_check.wasm", "range_check.circom-2.0.5.wasm", "range_check.circom-2.0.3.wasm"] {
        let input = r#"{"amount": [0,1,2,3,4,5,6,7,8,9,10,98765432109876], "ceiling": 70}"#;
        match generate(&own(wasm), input) {
            Err(WitnessError::Assert(text)) => {
                assert!(text.starts_with("Assert Failed"), "{wasm}: {text}");
                if wasm == "range_check.wasm" {
                    assert!(text.contains("Error in template RangeCheck"), "{text}");
                    assert!(text.contains("line: 29"), "{text}");
                }
                assert!(!text.contains("98765432109876"), "a message holds an input's value: {text}");
            }
            other => panic!("{wasm}: {other:?}"),
        }
    }
}

#[test]
fn a_failed_constraint_is_refused() {
    // The sum is above the ceiling.
    for wasm in ["range_check.wasm", "range_check.circom-2.0.5.wasm", "range_check.circom-2.0.3.wasm"] {
        let e = generate(&own(wasm), &format!(r#"{{{AMOUNT}, "ceiling": 10}}"#)).unwrap_err();
        assert!(matches!(e, WitnessError::Assert(_)), "{wasm}: {e:?}");
    }
    // k[1] is neither 0 nor 1.
    let e = generate(&own("multiplier_v1.wasm"), r#"{"a": 1, "b": 1, "k": [1, 9876543, 1]}"#).unwrap_err();
    let WitnessError::Assert(text) = &e else { panic!("{e:?}") };
    assert!(text.contains("Constraint doesn't match"), "{text}");
    assert!(!text.contains("9876543"), "{text}");
}

#[test]
fn a_program_that_was_stopped_before_it_began_says_so() {
    let stop = StopToken::new();
    stop.stop(StopReason::Draining);
    let inputs = Inputs::parse(&circuit_file("multiplier.input.json")).unwrap();
    let e = own("multiplier.wasm").generate(&inputs, &stop).unwrap_err();
    assert_eq!(e, WitnessError::Stopped(StopReason::Draining));
}

//! Tests of the replacements against circom's own functions and against ark-ff, and of which modules are recognised as
//! circom's.
#![allow(clippy::unwrap_used)]

use ark_ff::{AdditiveGroup, BigInteger, BigInteger256, Field, PrimeField};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use wasm_encoder::{CodeSection, ExportKind, ExportSection, FunctionSection, Module as Encoder, RawSection, SectionId};
use wasmtime::{Config, Engine, ExternType, Linker, Memory, Module, Store, Val};

use super::*;
use crate::model::{Fr, StopToken};
use crate::witness::{Inputs, Limits, ModuleCache, WasmWitness};

const OPERATORS: &[u8] = include_bytes!("../../../circuits/operators.wasm");

/// Adds functions to a module, and exports all of the runtime's as `f0`, `f1` and so on, followed by the added ones.
fn opened(wasm: &[u8], added: &[(Function, wasm_encoder::Function)]) -> Vec<u8> {
    altered(wasm, added, "memory", &[])
}

/// Like [`opened`], with another name for the memory, and with exports that refer to added functions.
fn altered(
    wasm: &[u8],
    added: &[(Function, wasm_encoder::Function)],
    memory: &str,
    instead: &[(&str, usize)],
) -> Vec<u8> {
    let parts = Parts::read(wasm).unwrap();
    let mut module = Encoder::new();
    for part in wasmparser::Parser::new(0).parse_all(wasm) {
        let part = part.unwrap();
        let Some((id, range)) = part.as_section() else { continue };
        if id == SectionId::Function as u8 {
            let mut section = FunctionSection::new();
            let like = added.iter().map(|(like, _)| &parts.functions[*like as usize]);
            parts.functions.iter().chain(like).for_each(|ty| _ = section.function(*ty));
            module.section(&section);
        } else if id == SectionId::Code as u8 {
            let mut section = CodeSection::new();
            parts.bodies.iter().for_each(|body| _ = section.raw(body.as_bytes()));
            added.iter().for_each(|(_, body)| _ = section.function(body));
            module.section(&section);
        } else if id == SectionId::Export as u8 {
            let mut section = ExportSection::new();
            let first = parts.imported + parts.functions.len() as u32;
            section.export(memory, ExportKind::Memory, 0);
            for (name, function) in &parts.exports {
                let other = instead.iter().find(|(instead, _)| instead == name).map(|(_, i)| first + *i as u32);
                section.export(name, ExportKind::Func, other.unwrap_or(*function));
            }
            let numbers = (parts.imported..).take(FUNCTIONS).chain((first..).take(added.len()));
            for (i, number) in numbers.enumerate() {
                section.export(&format!("f{i}"), ExportKind::Func, number);
            }
            module.section(&section);
        } else if id != SectionId::Custom as u8 {
            module.section(&RawSection { id, data: &wasm[range] });
        }
    }
    module.finish()
}

/// An instance outside the sandbox, which grants every request for time.
struct Bench {
    store: Store<()>,
    instance: wasmtime::Instance,
    memory: Memory,
}

impl Bench {
    fn new(wasm: &[u8]) -> Self {
        let mut config = Config::new();
        config.wasm_wide_arithmetic(true).wasm_multi_memory(true);
        let engine = Engine::new(&config).unwrap();
        let module = Module::new(&engine, wasm).unwrap();
        let mut linker = Linker::new(&engine);
        for import in module.imports() {
            let ExternType::Func(ty) = import.ty() else { panic!("{} is not a function", import.name()) };
            linker.func_new(import.module(), import.name(), ty, |_, _, _| Ok(())).unwrap();
        }
        let mut store = Store::new(&engine, ());
        let instance = linker.instantiate(&mut store, &module).unwrap();
        let memory = instance.get_memory(&mut store, "memory").unwrap();
        Self { store, instance, memory }
    }

    /// Calls a function by its position; returns the result, or `None` if it traps.
    fn call(&mut self, number: usize, params: &[i32]) -> Option<Option<i32>> {
        let f = self.instance.get_func(&mut self.store, &format!("f{number}")).unwrap();
        let params: Vec<Val> = params.iter().map(|p| Val::I32(*p)).collect();
        let mut results = vec![Val::I32(0); f.ty(&self.store).results().len()];
        f.call(&mut self.store, &params, &mut results).ok()?;
        Some(results.first().map(|r| r.unwrap_i32()))
    }

    fn params(&mut self, number: usize) -> usize {
        self.instance.get_func(&mut self.store, &format!("f{number}")).unwrap().ty(&self.store).params().len()
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.memory.data_mut(&mut self.store)
    }

    fn value(&mut self, at: u32) -> Fr {
        let bytes = &self.bytes()[at as usize..][..NUMBER as usize];
        let kind = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        if kind & runtime::LONG == 0 {
            return Fr::from(i32::from_le_bytes(bytes[..4].try_into().unwrap()));
        }
        let value = Fr::from_le_bytes_mod_order(&bytes[8..]);
        if kind & runtime::MONTGOMERY == 0 { value } else { value / Fr::from(Fr::R) }
    }
}

/// A module unmodified, and rewritten.
fn both(wasm: &[u8]) -> [Bench; 2] {
    [Bench::new(wasm), Bench::new(&rewrite(wasm).unwrap().0)]
}

/// The runtime's limit of shifts, which its own comparison converts to long form.
const SHIFT_BOUND: u32 = 88;

/// The runtime's scratch places, which the replacements do not use, and the limit of shifts: the only memory that may
/// differ.
const SCRATCHES: [std::ops::Range<usize>; 3] = [8..128, 160..608, 992..1920];

fn assert_alike(benches: &mut [Bench; 2], what: &dyn Fn() -> String) {
    let [a, b] = benches;
    let (a, b) = (a.bytes(), b.bytes());
    assert_eq!(a.len(), b.len(), "{}", what());
    for scratch in SCRATCHES {
        a[scratch.clone()].copy_from_slice(&b[scratch]);
    }
    if a != b {
        let at = a.iter().zip(b.iter()).position(|(a, b)| a != b).unwrap();
        panic!("{}: memory differs from {at} on: {:?} and {:?}", what(), &a[at..at + 8], &b[at..at + 8]);
    }
}

/// Addresses at which tests put three numbers.
const PLACES: [u32; 3] = [1 << 16, (1 << 16) + NUMBER, (1 << 16) + 2 * NUMBER];

/// Edge values: of the field, of forms, of comparisons, and numbers that are not field elements.
fn limbs() -> impl Strategy<Value = [u64; 4]> {
    let near = |x: [u64; 4]| (-2i64..3).prop_map(move |d| [x[0].wrapping_add(d as u64), x[1], x[2], x[3]]);
    prop_oneof![
        Just([0; 4]),
        Just([u64::MAX; 4]),
        Just([u64::MAX, u64::MAX, u64::MAX, (1 << 62) - 1]),
        (0u64..300).prop_map(|x| [x, 0, 0, 0]),
        any::<u64>().prop_map(|x| [x, 0, 0, 0]),
        near(runtime::R),
        near(runtime::HALF),
        near([0, 0, 0, 1 << 62]),
        near([1 << 31, 0, 0, 0]),
        (0u32..256).prop_map(|bit| std::array::from_fn(|i| if bit / 64 == i as u32 { 1 << (bit % 64) } else { 0 })),
        any::<[u64; 4]>(),
        any::<[u64; 4]>().prop_map(|x| Fr::from_le_bytes_mod_order(&x.map(u64::to_le_bytes).concat()).into_bigint().0),
        any::<[u64; 4]>().prop_map(|x| Fr::from_le_bytes_mod_order(&x.map(u64::to_le_bytes).concat()).into_bigint().0),
    ]
}

fn short() -> impl Strategy<Value = i32> {
    prop_oneof![-3..4i32, 0..300i32, Just(i32::MIN), Just(i32::MAX), any::<i32>()]
}

/// A number in any form, as 40 bytes.
fn number() -> impl Strategy<Value = Vec<u8>> {
    (short(), limbs(), 0..5u32).prop_map(|(short, limbs, form)| {
        let (kind, limbs) = match form {
            0 => (0, limbs),
            // A short value together with its Montgomery form, as conversions leave it.
            1 => (runtime::MONTGOMERY, (Fr::from(short) * Fr::from(Fr::R)).into_bigint().0),
            2 => (runtime::LONG | runtime::MONTGOMERY, limbs),
            _ => (runtime::LONG, limbs),
        };
        [&short.to_le_bytes()[..], &kind.to_le_bytes(), &limbs.map(u64::to_le_bytes).concat()].concat()
    })
}

/// Like [`number`], with a long value that is a field element.
fn element() -> impl Strategy<Value = Vec<u8>> {
    number().prop_map(|mut number| {
        let value = Fr::from_le_bytes_mod_order(&number[8..]).into_bigint().to_bytes_le();
        number[8..].copy_from_slice(&value);
        number
    })
}

/// The runtime's functions that take numbers by address. The others are reached through these, or have their own tests.
fn on_numbers() -> impl Iterator<Item = usize> {
    (33..=80).filter(|f| ![34, 36, 60, 61, 62, 63, 64, 65, 66, 67].contains(f))
}

/// Functions that give the same values as circom's own in other forms.
const BY_VALUE: [Function; 18] = [
    Function::Equal,
    Function::Greater,
    Function::Eq,
    Function::Neq,
    Function::Gt,
    Function::Geq,
    Function::Lt,
    Function::Leq,
    Function::IntegerQuotient,
    Function::Remainder,
    Function::Inverse,
    Function::Pow,
    Function::Shl,
    Function::Shr,
    Function::Band,
    Function::Bor,
    Function::Bxor,
    Function::Bnot,
];

/// Division in the field, which uses the inverse.
const DIV: usize = 58;

/// The value of a number regardless of its form; for a number in Montgomery form that is not a field element, its
/// limbs.
fn values(numbers: &[u8]) -> Vec<(bool, BigInteger256)> {
    let value = |number: &[u8]| {
        let kind = u32::from_le_bytes(number[4..8].try_into().unwrap());
        if kind & runtime::LONG == 0 {
            let short = Fr::from(i32::from_le_bytes(number[..4].try_into().unwrap()));
            return (true, short.into_bigint());
        }
        let (limbs, _) = number[8..].as_chunks();
        let limbs = BigInteger256::new(std::array::from_fn(|i| u64::from_le_bytes(limbs[i])));
        if kind & runtime::MONTGOMERY == 0 {
            (true, limbs)
        } else if limbs < Fr::MODULUS {
            (true, Fr::new_unchecked(limbs).into_bigint())
        } else {
            (false, limbs)
        }
    };
    numbers.chunks(NUMBER as usize).map(value).collect()
}

/// This permits results to be short where circom's are long: no function depends on the form of a number, except for
/// the low word of a long number, which is only asked for where it is not negative.
#[test]
fn functions_take_a_number_in_any_form_for_its_value() {
    const LOW_WORD: usize = 42;
    let mut benches = both(&opened(OPERATORS, &[]));
    // Without those that work on limbs alone, which the others call for long numbers.
    let of_forms = on_numbers().filter(|f| ![LOW_WORD, 70, 72, 74, 76].contains(f));
    let functions: Vec<(usize, usize)> = of_forms.map(|f| (f, benches[0].params(f))).collect();
    let benches = std::cell::RefCell::new(benches);
    let small = || prop_oneof![-4..4i32, 0..300i32, Just(i32::MIN), Just(i32::MAX), any::<i32>()];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(number(), element(), small(), 0..2usize), |(any, other, value, which)| {
            let benches = &mut *benches.borrow_mut();
            let short = [&value.to_le_bytes()[..], &[0; 36]].concat();
            let long =
                |kind: u32, value: Fr| [&[0; 4], &kind.to_le_bytes()[..], &value.into_bigint().to_bytes_le()].concat();
            let montgomery = long(runtime::LONG | runtime::MONTGOMERY, Fr::from(value) * Fr::from(Fr::R));
            let forms = [short, long(runtime::LONG, Fr::from(value)), montgomery];
            for ((function, params), bench) in functions.iter().flat_map(|f| [(f, 0), (f, 1)]) {
                // Operands follow the place of the result, if the result is in memory.
                let of_operands = [Function::Equal, Function::Greater].map(|f| f as usize).contains(function);
                let first = usize::from(*params > 1 && !of_operands);
                let at = first + which.min(*params - first - 1);
                let results = forms.each_ref().map(|form| {
                    let bench = &mut benches[bench];
                    let mut numbers = [&other; 3];
                    numbers[0] = if first == 1 { &any } else { &other };
                    numbers[at] = form;
                    for (at, number) in PLACES.iter().zip(numbers) {
                        bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(number);
                    }
                    let params: Vec<i32> = PLACES[..*params].iter().map(|p| *p as i32).collect();
                    let result = bench.call(*function, &params);
                    (result, result.map(|_| PLACES.map(|at| bench.value(at))))
                });
                for result in &results[1..] {
                    assert_eq!(result, &results[0], "function {function} of {value} at {at} beside {other:?}");
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn integers_are_divided_as_integers() {
    let mut bench = both(&opened(OPERATORS, &[])).into_iter().next_back().unwrap();
    let long = |limbs: [u64; 4]| {
        [&[0; 4], &runtime::LONG.to_le_bytes()[..], limbs.map(u64::to_le_bytes).as_flattened()].concat()
    };
    let integer = |limbs: [u64; 4]| -> num_bigint::BigUint { BigInteger256::new(limbs).into() };
    // Includes digits at which the estimate of the quotient's next digit is too large by one and by two.
    let digits = [0u64, 1, 2, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, 0xffff_ffff];
    let limbs: Vec<u64> = digits.iter().flat_map(|high| digits.map(|low| high << 32 | low)).collect();
    let mut state = Fr::from(11u64);
    for divisor in limbs.iter().filter(|divisor| **divisor > 0) {
        for pick in 0..24 {
            state = state * state + Fr::from(pick as u64);
            let any = state.into_bigint().0;
            let edges = any.map(|limb| limbs[limb as usize % limbs.len()]);
            for x in [any, edges, [edges[0], edges[1], 0, 0], [any[0], divisor - 1, 0, 0]] {
                for (at, number) in PLACES.iter().zip([long([1; 4]), long(x), long([*divisor, 0, 0, 0])]) {
                    bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(&number);
                }
                let (x, d) = (integer(x), integer([*divisor, 0, 0, 0]));
                for (function, expected) in [(Function::IntegerQuotient, &x / &d), (Function::Remainder, &x % &d)] {
                    bench.call(function as usize, &PLACES.map(|p| p as i32)).unwrap();
                    let got = values(&bench.bytes()[PLACES[0] as usize..][..NUMBER as usize])[0].1;
                    assert_eq!(num_bigint::BigUint::from(got), expected, "{function:?} of {x} and {d}");
                }
            }
        }
    }
}

/// Otherwise a constant of the program would be long from then on, and with it everything computed from it.
#[test]
fn short_operands_stay_short() {
    let mut bench = both(&opened(OPERATORS, &[])).into_iter().next_back().unwrap();
    let long =
        [&[0; 4], &runtime::LONG.to_le_bytes()[..], &Fr::from(2u64).pow([250]).into_bigint().to_bytes_le()].concat();
    let short = |x: i32| [&x.to_le_bytes()[..], &[0; 36]].concat();
    let mut is_short_after = |function: Function, operands: &[(u32, &Vec<u8>)], which: usize| {
        for (at, number) in operands {
            bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(number);
        }
        let params: Vec<i32> = PLACES[..bench.params(function as usize)].iter().map(|p| *p as i32).collect();
        bench.call(function as usize, &params).unwrap();
        bench.bytes()[operands[which].0 as usize + 7] & 0x80 == 0
    };
    let [first, second, third] = PLACES;
    let arithmetic = [Function::Add, Function::Sub, Function::Mul];
    for function in arithmetic.into_iter().chain(BY_VALUE).filter(|f| *f != Function::Inverse) {
        // The place of the result comes before the operands', if there is one.
        let to_memory = ![Function::Equal, Function::Greater].contains(&function);
        let (a, c) = if to_memory { (second, third) } else { (first, second) };
        assert!(is_short_after(function, &[(a, &short(121)), (c, &short(1))], 0), "{function:?} of two");
        assert!(is_short_after(function, &[(a, &short(1)), (c, &short(121))], 1), "{function:?} of two");
        assert!(is_short_after(function, &[(a, &long), (c, &short(121))], 1), "{function:?} of a long one and it");
        // Powers with long exponents and shifts by long numbers are left to circom's own functions.
        if ![Function::Pow, Function::Shl, Function::Shr].contains(&function) {
            assert!(is_short_after(function, &[(a, &short(121)), (c, &long)], 0), "{function:?} of it and a long one");
        }
    }
    assert!(is_short_after(Function::Inverse, &[(second, &short(121))], 0));
}

#[test]
fn powers_are_those_of_the_field_and_short_where_they_can_be() {
    let mut benches = both(&opened(OPERATORS, &[]));
    let long = |x: Fr| [&[0; 4], &runtime::LONG.to_le_bytes()[..], &x.into_bigint().to_bytes_le()].concat();
    let short = |x: i32| [&x.to_le_bytes()[..], &[0; 36]].concat();
    let shorts = [-3, -2, -1, 0, 1, 2, 3, 10, 46340, 46341, 65536, i32::MAX, i32::MIN];
    let bases = shorts.map(|x| (short(x), Fr::from(x))).into_iter();
    let bases = bases.chain([3u64, 1 << 40].map(|x| (long(Fr::from(x)), Fr::from(x))));
    let bases = bases.chain(std::iter::once(Fr::from(5u64).pow([77])).map(|x| (long(x), x)));
    let exponents = (0..70).chain([127, 128, 253, 254, 255, 256, 65535, 65537, i32::MAX - 1, i32::MAX]);
    for ((base, x), exponent) in bases.flat_map(|base| exponents.clone().map(move |e| (base.clone(), e))) {
        for bench in &mut benches {
            for (at, number) in PLACES.iter().zip([&long(Fr::ONE), &base, &short(exponent)]) {
                bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(number);
            }
            bench.call(Function::Pow as usize, &PLACES.map(|p| p as i32)).unwrap();
            assert_eq!(bench.value(PLACES[0]), x.pow([exponent as u64]), "{x} to the power of {exponent}");
        }
        let kind = &benches[1].bytes()[PLACES[0] as usize..][4..8];
        let fits =
            base[7] == 0 && i32::from_le_bytes(base[..4].try_into().unwrap()).checked_pow(exponent as u32).is_some();
        assert!(!fits || kind == [0; 4], "{x} to the power of {exponent} is short");
    }
}

#[test]
fn bits_of_long_numbers_are_short() {
    let mut bench = both(&opened(OPERATORS, &[])).into_iter().next_back().unwrap();
    let long = |x: Fr| [&[0; 4], &runtime::LONG.to_le_bytes()[..], &x.into_bigint().to_bytes_le()].concat();
    let short = |x: i32| [&x.to_le_bytes()[..], &[0; 36]].concat();
    let x = Fr::from(3u64).pow([500]);
    let mut sum = Fr::ZERO;
    for bit in 0..254 {
        for (at, number) in PLACES.iter().zip([long(Fr::ONE), long(x), short(bit)]) {
            bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(&number);
        }
        bench.call(Function::Shr as usize, &PLACES.map(|p| p as i32)).unwrap();
        bench.bytes()[PLACES[2] as usize..][..NUMBER as usize].copy_from_slice(&short(1));
        bench.call(Function::Band as usize, &[PLACES[1], PLACES[0], PLACES[2]].map(|p| p as i32)).unwrap();
        let number = &bench.bytes()[PLACES[1] as usize..][..8];
        assert!(number[0] <= 1 && number[1..] == [0; 7], "bit {bit}: {number:?}");
        sum += Fr::from(number[0]) * Fr::from(2u64).pow([bit as u64]);
    }
    assert_eq!(sum, x);
}

#[test]
fn functions_on_numbers_do_what_circoms_do() {
    let mut benches = both(&opened(OPERATORS, &[]));
    let functions: Vec<(usize, usize)> = on_numbers().map(|f| (f, benches[0].params(f))).collect();
    let benches = std::cell::RefCell::new(benches);
    // Aliased in every way: the places of the result and the operands.
    let places = prop_oneof![
        3 => Just([0usize, 1, 2]),
        1 => prop::array::uniform3(0..3usize),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(prop::array::uniform3(number()), places), |(numbers, places)| {
            let benches = &mut *benches.borrow_mut();
            for (function, params) in &functions {
                let params: Vec<i32> = places[..*params].iter().map(|p| PLACES[*p] as i32).collect();
                let results = benches.each_mut().map(|bench| {
                    for (at, number) in PLACES.iter().zip(&numbers) {
                        bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(number);
                    }
                    bench.call(*function, &params)
                });
                let what = || format!("function {function} of {numbers:?} at {places:?}");
                assert_eq!(results[0], results[1], "{}", what());
                let low = |bench: &mut Bench| bench.bytes()[PLACES[0] as usize..][..3 * NUMBER as usize].to_vec();
                let [a, b] = benches.each_mut().map(low);
                if *function == DIV || BY_VALUE.iter().any(|f| *f as usize == *function) {
                    assert_eq!(values(&a), values(&b), "{}", what());
                } else {
                    assert_eq!(a, b, "{}", what());
                }
            }
            Ok(())
        })
        .unwrap();
    let mut benches = benches.into_inner();
    assert_alike(&mut benches, &|| "after all".into());
    assert_eq!(benches.each_mut().map(|bench| bench.value(SHIFT_BOUND)), [Fr::from(254u64); 2]);
}

#[test]
fn functions_on_limbs_do_what_circoms_do() {
    let mut benches = both(&opened(OPERATORS, &[]));
    // Functions of one and of two operands; the result comes last. Division gives two results.
    let functions = [(15, 3), (16, 3), (17, 3), (18, 2), (20, 3), (21, 2), (23, 2), (24, 2)];
    let places = prop_oneof![Just([0usize, 1, 2]), prop::array::uniform3(0..3usize)];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let benches = std::cell::RefCell::new(&mut benches);
    runner
        .run(&(prop::array::uniform3(limbs()), places), |(numbers, places)| {
            let benches = &mut **benches.borrow_mut();
            let mut check = |function: usize, params: &[i32]| {
                let states = benches.each_mut().map(|bench| {
                    for (at, number) in PLACES.iter().zip(&numbers) {
                        let bytes = number.map(u64::to_le_bytes);
                        bench.bytes()[*at as usize..][..32].copy_from_slice(bytes.as_flattened());
                    }
                    let result = bench.call(function, params);
                    (result, bench.bytes()[PLACES[0] as usize..][..3 * NUMBER as usize].to_vec())
                });
                assert!(states[0] == states[1], "function {function} of {numbers:x?} at {params:?}: {states:x?}");
            };
            for (function, params) in functions {
                let mut params: Vec<i32> = places[..params].iter().map(|p| PLACES[*p] as i32).collect();
                if function == 15 {
                    params[1] = runtime::R_AT as i32;
                }
                check(function, &params);
            }
            let [x, y, z] = places.map(|p| PLACES[p] as i32);
            for results in [[z, 0], [0, z], [z, 16], [16, z]] {
                check(14, &[x, y, results[0], results[1]]);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn arithmetic_is_that_of_the_field() {
    let mut bench = both(&opened(OPERATORS, &[])).into_iter().next_back().unwrap();
    let bench = std::cell::RefCell::new(&mut bench);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }, |(a in element(), b in element())| {
        let bench = &mut **bench.borrow_mut();
        let mut run = |function: Function, expected: &dyn Fn(Fr, Fr) -> Fr| {
            for (at, number) in PLACES[1..].iter().zip([&a, &b]) {
                bench.bytes()[*at as usize..][..NUMBER as usize].copy_from_slice(number);
            }
            let (x, y) = (bench.value(PLACES[1]), bench.value(PLACES[2]));
            bench.call(function as usize, &PLACES.map(|p| p as i32)).unwrap();
            assert_eq!(bench.value(PLACES[0]), expected(x, y), "{function:?} of {a:?} and {b:?}");
        };
        run(Function::Add, &|x, y| x + y);
        run(Function::Sub, &|x, y| x - y);
        run(Function::Mul, &|x, y| x * y);
        let sign = |x: Fr| x.into_bigint() > Fr::MODULUS_MINUS_ONE_DIV_TWO;
        let less = move |x: Fr, y: Fr| match (sign(x), sign(y)) {
            (true, false) => true,
            (false, true) => false,
            _ => x.into_bigint() < y.into_bigint(),
        };
        run(Function::Lt, &|x, y| Fr::from(less(x, y)));
        run(Function::Leq, &|x, y| Fr::from(!less(y, x)));
        run(Function::Gt, &|x, y| Fr::from(less(y, x)));
        run(Function::Geq, &|x, y| Fr::from(!less(x, y)));
        run(Function::Eq, &|x, y| Fr::from(x == y));
        run(Function::Neq, &|x, y| Fr::from(x != y));
    });
}

#[test]
fn inverses_are_those_of_the_field() {
    let mut bench = both(&opened(OPERATORS, &[])).into_iter().next_back().unwrap();
    let mut check = |x: Fr| {
        bench.bytes()[PLACES[0] as usize..][..32].copy_from_slice(&x.into_bigint().to_bytes_le());
        bench.call(15, &[PLACES[0] as i32, runtime::R_AT as i32, PLACES[1] as i32]).unwrap();
        let inverse = &bench.bytes()[PLACES[1] as usize..][..32];
        let expected = x.inverse().unwrap_or(Fr::ZERO).into_bigint().to_bytes_le();
        assert_eq!(inverse, expected, "of {x}");
    };
    let mut x = Fr::from(3u64);
    for i in 0..2000u64 {
        [Fr::from(i), -Fr::from(i), x, x.inverse().unwrap(), Fr::from(2u64).pow([i])].into_iter().for_each(&mut check);
        x = x * x + Fr::from(i);
    }
}

/// A function of one parameter, an address, that copies numbers to it, element by element, as circom does.
fn rows(copies: &[(i32, i32)], copy: u32) -> wasm_encoder::Function {
    let mut body = emit::Body::new(3);
    for (index, from) in copies {
        body.op()
            .i32_const(*index)
            .i32_const(NUMBER as i32)
            .i32_mul()
            .local_get(0)
            .i32_add()
            .i32_const(*from)
            .call(copy);
    }
    body.finish()
}

#[test]
fn rows_of_copies_do_what_the_copies_do() {
    let copy = Parts::read(OPERATORS).unwrap().imported + Function::Copy as u32;
    let (at, n) = (1 << 17, NUMBER as i32);
    // Rows of each kind, mixtures, gaps, an index that goes back, and sources that partly overlap.
    let neighbours: Vec<_> = (0..100).map(|i| (i, at + n * i)).collect();
    let same: Vec<_> = (3..60).map(|i| (i, at)).collect();
    let scattered: Vec<_> = (0..50).map(|i| (i, at + n * (i * 7 % 31))).collect();
    let mixed =
        [&neighbours[..30], &(30..40).map(|i| (i, at)).collect::<Vec<_>>(), &[(40, at + 8), (41, at + 16), (42, at)]]
            .concat();
    let broken = [(0, at), (1, at + n), (3, at + 2 * n), (4, at + 3 * n), (2, at), (3, at), (4, at), (5, at + 12)];
    let two = [(0, at), (1, at + n)];
    let sets: [&[(i32, i32)]; 6] = [&neighbours, &same, &scattered, &mixed, &broken, &two];
    let added: Vec<_> = sets.iter().map(|set| (Function::CopyN, rows(set, copy))).collect();
    let wasm = opened(OPERATORS, &added);
    let (_, rewritten) = rewrite(&wasm).unwrap();
    let (_, before) = rewrite(OPERATORS).unwrap();
    assert_eq!(rewritten.copies - before.copies, 100 + 57 + 50 + 43 + 4, "what is merged");
    let mut benches = both(&wasm);
    for set in 0..sets.len() {
        // Apart; the same place; overlapping from below and above, by whole numbers and by parts of one; at the end of
        // memory and beyond; wrapping around the end of the address space.
        let size = benches[0].bytes().len() as i32;
        for to in [
            at + 100 * n,
            at,
            at - n,
            at + n,
            at - 12,
            at + 12,
            at - 99 * n,
            at + 99 * n,
            at + 10 * n + 4,
            size - 50 * n,
            size,
            -80,
        ] {
            let results = benches.each_mut().map(|bench| {
                for (i, byte) in bench.bytes()[(1 << 16)..(1 << 18)].iter_mut().enumerate() {
                    *byte = (i * i / 7) as u8;
                }
                bench.call(FUNCTIONS + set, &[to, 0, 0])
            });
            assert_eq!(results[0], results[1], "set {set} to {to}");
            if results[0].is_some() {
                assert_alike(&mut benches, &|| format!("set {set} to {to}"));
            } else {
                for bench in &mut benches {
                    bench.bytes()[size as usize - 50 * n as usize..].fill(0);
                }
            }
        }
    }
}

#[test]
fn many_numbers_are_copied_as_circom_does() {
    let mut benches = both(&opened(OPERATORS, &[]));
    let (from, n) = (1 << 17, NUMBER as i32);
    for (to, count) in [
        (1 << 18, 100),
        (from + n, 10),
        (from - n, 10),
        (from + 8, 3),
        (from - 8, 3),
        (from, 5),
        (0, 0),
        (-1, 0),
        (1 << 18, -1),
        (1 << 18, 1 << 30),
    ] {
        let results = benches.each_mut().map(|bench| {
            for (i, byte) in bench.bytes()[from as usize - 400..from as usize + 8000].iter_mut().enumerate() {
                *byte = (i * i / 7) as u8;
            }
            bench.call(Function::CopyN as usize, &[to, from, count])
        });
        assert_eq!(results[0], results[1], "{count} to {to}");
        if results[0].is_some() {
            assert_alike(&mut benches, &|| format!("{count} to {to}"));
        } else {
            benches = both(&opened(OPERATORS, &[]));
        }
    }
}

/// The bytes of a function's body in a module.
fn body_range(wasm: &[u8], own: usize) -> std::ops::Range<usize> {
    Parts::read(wasm).unwrap().bodies[own].range()
}

#[test]
fn a_runtime_that_is_not_circoms_is_left_alone() {
    assert!(rewrite(OPERATORS).is_some());
    // Each instruction of the product, of the sum and of others, changed wherever the module stays valid.
    let mut tried = 0;
    for own in [0usize, 7, 20, 33, 43, 54, 80] {
        let range = body_range(OPERATORS, own);
        for at in range.clone().step_by(range.len().div_ceil(40)) {
            for flip in [1u8, 0x40] {
                let mut changed = OPERATORS.to_vec();
                changed[at] ^= flip;
                assert!(rewrite(&changed).is_none(), "function {own}, byte {at}");
                tried += 1;
            }
        }
    }
    assert!(tried > 200);
}

#[test]
fn constants_that_are_not_circoms_are_left_alone() {
    let wasm = OPERATORS;
    let parts = Parts::read(wasm).unwrap();
    let r: Vec<u8> = runtime::R.map(u64::to_le_bytes).concat();
    let mut found = 0;
    for at in (0..wasm.len() - 32).filter(|at| wasm[*at..].starts_with(&r)) {
        let mut changed = wasm.to_vec();
        changed[at] ^= 2;
        // The second one is only shown, not computed with.
        found += 1;
        assert_eq!(rewrite(&changed).is_none(), found == 1, "at {at}");
    }
    assert_eq!(found, 2);
    assert_eq!(parts.initial(runtime::R_AT), Some(runtime::R[0].to_le_bytes()));
    assert_eq!(parts.initial(runtime::R_AT + 4), Some(r[4..12].try_into().unwrap()));
    assert_eq!(parts.initial(4), None, "no segment fills it");
}

#[test]
fn modules_of_another_form_are_left_alone() {
    for wasm in
        [&include_bytes!("../../../circuits/multiplier_v1.wasm")[..], b"", b"\0asm\x01\0\0\0", &OPERATORS[..4000]]
    {
        assert!(rewrite(wasm).is_none());
    }
    // A second segment over r, a global, a start function.
    type Sections = Vec<(u8, Vec<u8>)>;
    let sections = |edit: &dyn Fn(u8, &[u8]) -> Sections| {
        let mut module = Encoder::new();
        for part in wasmparser::Parser::new(0).parse_all(OPERATORS) {
            let part = part.unwrap();
            let Some((id, range)) = part.as_section() else { continue };
            for (id, data) in edit(id, &OPERATORS[range]) {
                module.section(&RawSection { id, data: &data });
            }
        }
        module.finish()
    };
    let before = |wanted: SectionId, new: SectionId, content: &'static [u8]| {
        move |id: u8, data: &[u8]| {
            let mut out = vec![(id, data.to_vec())];
            if id == wanted as u8 {
                out.insert(0, (new as u8, content.to_vec()));
            }
            out
        }
    };
    assert!(rewrite(&sections(&|id, data| vec![(id, data.to_vec())])).is_some());
    // One mutable global of type i32, initially 0.
    let global = sections(&before(SectionId::Export, SectionId::Global, &[1, 0x7f, 1, 0x41, 0, 0x0b]));
    assert!(rewrite(&global).is_none());
    let start = sections(&before(SectionId::Element, SectionId::Start, &[90]));
    assert!(rewrite(&start).is_none());
    let segment = sections(&|id, data| {
        let mut data = data.to_vec();
        if id == SectionId::Data as u8 {
            // One more segment: memory 0, at 608, one byte.
            data[0] += 1;
            data.extend([0, 0x41, 0xe0, 0x04, 0x0b, 1, 7]);
        }
        vec![(id, data)]
    });
    wasmparser::Parser::new(0).parse_all(&segment).for_each(|p| _ = p.unwrap());
    assert!(rewrite(&segment).is_none());
}

/// The version identifies cached modules.
#[test]
fn what_is_written_has_its_own_version() {
    let written = hex::encode(Sha256::digest(rewrite(OPERATORS).unwrap().0));
    assert_eq!(
        (VERSION, written.as_str()),
        (3, "84f675311712b33147609a903b1b533f76f025380ae8b436eaf9eebae02b5a3e"),
        "another module takes another version"
    );
}

#[test]
fn what_was_done_can_be_read_from_the_module() {
    let (wasm, rewritten) = rewrite(OPERATORS).unwrap();
    assert_eq!(Rewritten::read(&wasm), Some(rewritten));
    assert_eq!(Rewritten::read(OPERATORS), None);
    assert!(rewritten.witness.is_some() && rewritten.copies > 20 && rewritten.functions == REPLACED.len() as u64);
    // Nothing is left to rewrite.
    assert!(rewrite(&wasm).is_none());
}

#[test]
fn instructions_that_circom_does_not_write_are_left_alone() {
    let with = |write: &dyn Fn(&mut emit::Body)| {
        let mut body = emit::Body::new(3);
        write(&mut body);
        rewrite(&opened(OPERATORS, &[(Function::CopyN, body.finish())]))
    };
    assert!(with(&|_| {}).is_some());
    assert!(with(&|b| _ = b.op().i32_const(0).i32_const(0).i32_const(0).memory_fill(0)).is_none());
    assert!(with(&|b| _ = b.op().i32_const(0).i32_const(0).i32_const(0).memory_copy(0, 0)).is_none());
    assert!(with(&|b| _ = b.op().i32_const(0).i32_extend8_s().drop()).is_none());
    // A module cannot use what rewriting adds: the global, the second memory, functions after its own.
    assert!(with(&|b| _ = b.op().i64_const(1 << 62).global_set(0)).is_none());
    let second = wasm_encoder::MemArg { memory_index: 1, ..emit::at(0) };
    assert!(with(&|b| _ = b.op().i32_const(0).i32_load(second).drop()).is_none());
    let behind = Parts::read(OPERATORS).map(|p| p.imported + p.functions.len() as u32 + 1).unwrap();
    assert!(with(&|b| _ = b.op().local_get(0).local_get(1).local_get(2).call(behind)).is_none());
}

const AMPLE: Limits = Limits {
    time: std::time::Duration::from_secs(60),
    memory: 1 << 30,
    compile_time: std::time::Duration::from_secs(300),
    compile_memory: 4 << 30,
};

/// The result of a module unmodified and rewritten, which must be the same.
fn generated(wasm: &[u8], limits: Limits) -> Result<usize, String> {
    let [plain, rewritten] = [false, true].map(|rewrite| {
        let cache = ModuleCache { dir: None, compiler: None, rewrite };
        let program = WasmWitness::load(wasm, limits, &cache).map_err(|e| e.to_string())?;
        assert_eq!(program.info().rewritten.is_some(), rewrite);
        let inputs = Inputs::parse(br#"{"a": 5, "b": 77, "c": [1, -1, 3]}"#).unwrap();
        let witness = program.generate(&inputs, &StopToken::new()).map_err(|e| e.to_string())?;
        Ok(witness.values().to_vec())
    });
    assert_eq!(plain, rewritten);
    plain.map(|values: Vec<_>| values.len())
}

#[test]
fn a_module_cannot_ask_for_time_by_itself() {
    let handler = Parts::read(OPERATORS).unwrap().exception_handler.unwrap();
    let mut asks = emit::Body::new(1);
    asks.op().i32_const(ASK).call(handler);
    let wasm = altered(OPERATORS, &[(Function::ToNormal, asks.finish())], "memory", &[("init", 0)]);
    let e = generated(&wasm, AMPLE).unwrap_err();
    assert!(e.contains(&format!("unexpected exception {ASK}")), "{e}");
}

#[test]
fn a_module_that_hides_its_memory_gives_its_witness_through_its_functions() {
    assert_eq!(generated(OPERATORS, AMPLE), Ok(46));
    let hidden = altered(OPERATORS, &[], "other", &[]);
    assert_eq!(generated(&hidden, AMPLE), Ok(46));
    assert!(rewrite(&hidden).unwrap().1.witness.is_none() && rewrite(OPERATORS).unwrap().1.witness.is_some());
}

#[test]
fn what_rewriting_adds_does_not_count_as_the_programs_memory() {
    let pages = 11 << 16;
    assert_eq!(generated(OPERATORS, Limits { memory: pages, ..AMPLE }), Ok(46));
    let e = generated(OPERATORS, Limits { memory: pages - 1, ..AMPLE }).unwrap_err();
    assert!(e.contains(&format!("limit of {} bytes", pages - 1)), "{e}");
}

#[test]
fn a_module_that_would_grow_beyond_the_formats_limits_stays_as_it_is() {
    let copy = Parts::read(OPERATORS).unwrap().imported + Function::Copy as u32;
    // A function has at most 50,000 locals, parameters included, and inlining a copy adds two.
    let locals = |own: u32| {
        let mut body = wasm_encoder::Function::new([(own, wasm_encoder::ValType::I32)]);
        body.instructions().i32_const(0).i32_const(4000).call(copy).end();
        opened(OPERATORS, &[(Function::CopyN, body)])
    };
    let valid = |wasm: &[u8]| Validator::new_with_features(WasmFeatures::WASM1).validate_all(wasm).is_ok();
    for (own, rewritten) in [(49_995, true), (49_996, false), (49_997, false)] {
        let wasm = locals(own);
        assert!(valid(&wasm));
        let cache = ModuleCache { dir: None, compiler: None, rewrite: true };
        let program = WasmWitness::load(&wasm, AMPLE, &cache).unwrap();
        assert_eq!(program.info().rewritten.is_some(), rewritten, "{own}");
        let inputs = Inputs::parse(br#"{"a": 5, "b": 77, "c": [1, -1, 3]}"#).unwrap();
        assert_eq!(program.generate(&inputs, &StopToken::new()).unwrap().len(), 46, "{own}");
    }
    assert!(!valid(&locals(49_998)));
    // Rewriting a loop adds some 18 bytes, and a function has at most 7,654,321.
    let mut loops = wasm_encoder::Function::new([]);
    for _ in 0..400_000 {
        loops.instructions().loop_(wasm_encoder::BlockType::Empty).end();
    }
    loops.instructions().end();
    let wasm = opened(OPERATORS, &[(Function::CopyN, loops)]);
    assert!(valid(&wasm) && rewrite(&wasm).is_none());
}

#[test]
fn what_takes_long_is_paid_for() {
    // An endless loop in one of the circuit's functions asks again and again.
    let copy = Parts::read(OPERATORS).unwrap().imported + Function::Copy as u32;
    let mut endless = emit::Body::new(3);
    endless.op().loop_(wasm_encoder::BlockType::Empty).i32_const(0).i32_const(0).call(copy).br(0).end();
    // So do the runtime's own loops: a power with an exponent of 2^17 bytes.
    let mut power = emit::Body::new(3);
    let exp = Parts::read(OPERATORS).unwrap().imported + 30;
    power.op().i32_const(1 << 16).i32_const(0).i32_const(1 << 17).i32_const(1 << 17).call(exp);
    // And a copy of many numbers at once.
    let mut many = emit::Body::new(3);
    many.op().loop_(wasm_encoder::BlockType::Empty).i32_const(1 << 19).i32_const(1 << 17).i32_const(4000);
    many.op().call(Parts::read(OPERATORS).unwrap().imported + Function::CopyN as u32).br(0).end();
    let added = [endless, power, many].map(|body| (Function::CopyN, body.finish()));
    let wasm = opened(OPERATORS, &added);
    let mut config = Config::new();
    config.wasm_wide_arithmetic(true).wasm_multi_memory(true);
    let engine = Engine::new(&config).unwrap();
    let module = Module::new(&engine, rewrite(&wasm).unwrap().0).unwrap();
    for function in FUNCTIONS..FUNCTIONS + 3 {
        let mut linker: Linker<u32> = Linker::new(&engine);
        for import in module.imports() {
            let ExternType::Func(ty) = import.ty() else { panic!("{} is not a function", import.name()) };
            let add = |mut caller: wasmtime::Caller<'_, u32>, params: &[Val], _: &mut [Val]| {
                *caller.data_mut() += 1;
                assert!(matches!(params, [Val::I32(clock::ASK)]));
                if *caller.data() < 20 { Ok(()) } else { Err(wasmtime::Error::msg("enough")) }
            };
            linker.func_new(import.module(), import.name(), ty, add).unwrap();
        }
        let mut store = Store::new(&engine, 0);
        let instance = linker.instantiate(&mut store, &module).unwrap();
        let f = instance.get_typed_func::<(i32, i32, i32), ()>(&mut store, &format!("f{function}")).unwrap();
        assert!(f.call(&mut store, (0, 0, 0)).is_err());
        assert_eq!(*store.data(), 20);
    }
}

//! A first look at a module, before it is worth compiling.

use wasmparser::{Operator, Parser, Payload, TypeRef};

use super::WitnessError;
use crate::formats::FileKind;

/// Maximum size of a module, bytes.
pub(super) const MAX_MODULE: usize = 256 << 20;
/// The functions a witness program may import, all from `runtime`: of circom 2, of older circom 2, and of circom 1.
const IMPORTS: [&str; 11] = [
    "exceptionHandler",
    "printErrorMessage",
    "writeBufferMessage",
    "showSharedRWMemory",
    "printDebug",
    "error",
    "log",
    "logGetSignal",
    "logSetSignal",
    "logStartComponent",
    "logFinishComponent",
];

/// Maximum nesting of blocks in a function. The compiler's time grows with the square of the depth, and circom's code
/// nests only a handful of blocks.
const MAX_NESTING: usize = 4096;

/// Refuses functions whose blocks nest too deeply to compile. Reads every instruction, so it is meant only for modules
/// that are about to be compiled; invalid ones may pass.
pub(super) fn check_nesting(wasm: &[u8]) -> Result<(), WitnessError> {
    for part in Parser::new(0).parse_all(wasm) {
        let Ok(Payload::CodeSectionEntry(body)) = part else { continue };
        let Ok(instructions) = body.get_operators_reader() else { continue };
        let mut depth = 0usize;
        for instruction in instructions.into_iter().map_while(Result::ok) {
            match instruction {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                    depth += 1;
                }
                Operator::End => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_NESTING {
                return Err(WitnessError::Module(format!("a function nests blocks deeper than {MAX_NESTING}")));
            }
        }
    }
    Ok(())
}

/// What a module's sections tell about it.
pub(super) struct Outline {
    circom1: bool,
    /// Bytes of its longest function.
    pub longest_function: u64,
}

impl Outline {
    /// Reads a module's sections; checks its format, its imports and that it exports what circom's programs do.
    pub(super) fn read(wasm: &[u8]) -> Result<Self, WitnessError> {
        let refuse = |why: String| Err(WitnessError::Module(why));
        if wasm.len() > MAX_MODULE {
            return refuse(format!("expected at most {MAX_MODULE} bytes, got {}", wasm.len()));
        }
        match wasm {
            [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => {}
            [b'\0', b'a', b's', b'm', version @ ..] => {
                return refuse(format!("it is WebAssembly, but not a version 1 module: {}", begin(version)));
            }
            _ => return refuse(format!("expected a WebAssembly module, got {}", guess(wasm))),
        }
        let (mut circom1, mut circom2, mut longest_function) = (false, false, 0);
        for part in Parser::new(0).parse_all(wasm) {
            let damaged = |e: wasmparser::BinaryReaderError| {
                WitnessError::Module(format!("the module is damaged at byte {}: {}", e.offset(), e.message()))
            };
            match part.map_err(damaged)? {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import.map_err(damaged)?;
                        let known = match import.ty {
                            TypeRef::Func(_) => import.module == "runtime" && IMPORTS.contains(&import.name),
                            TypeRef::Memory(_) => import.module == "env" && import.name == "memory",
                            _ => false,
                        };
                        if !known {
                            let (module, name) = (clip(import.module), clip(import.name));
                            return refuse(format!(
                                "it imports {module}.{name}, which circom's programs do not import"
                            ));
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let name = export.map_err(damaged)?.name;
                        circom1 |= name == "getFrLen";
                        circom2 |= name == "getVersion";
                    }
                }
                Payload::CodeSectionEntry(body) => {
                    let range = body.range();
                    longest_function = longest_function.max((range.end - range.start) as u64);
                }
                _ => {}
            }
        }
        if !circom1 && !circom2 {
            return refuse(
                "it exports neither getVersion, as circom 2's programs do, nor getFrLen, as circom 1's".into(),
            );
        }
        Ok(Self { circom1: !circom2, longest_function })
    }

    /// Whether it is a circom 1 program.
    pub(super) fn circom1(&self) -> bool {
        self.circom1
    }
}

/// Makes a text from outside safe to print: shortened and escaped.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn begin(bytes: &[u8]) -> String {
    format!("its next bytes are {}", hex::encode(&bytes[..bytes.len().min(4)]))
}

/// Describes a file that is not a module.
fn guess(bytes: &[u8]) -> String {
    match (bytes, FileKind::of(bytes)) {
        ([], _) => "an empty file".into(),
        (_, Some(kind)) => kind.to_string(),
        _ => format!("a file that begins with {}", hex::encode(&bytes[..bytes.len().min(8)])),
    }
}

//! A module taken apart, as far as rewriting needs it, and put together again.

use std::collections::BTreeMap;

use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, DataSection, Encode, ExportKind, Function, FunctionSection, GlobalSection,
    GlobalType, MemorySection, MemoryType, Module, RawSection, SectionId,
};
use wasmparser::{DataKind, ExternalKind, FuncType, FunctionBody, Operator, Parser, Payload, TypeRef, ValType};

use super::clock::{BUDGET_EXPORT, Edit};

/// Bytes of a page of memory.
const PAGE: u64 = 1 << 16;

/// Bytes in whole pages.
pub(super) fn whole_pages(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(PAGE) * PAGE
}

/// A module's parts.
pub(super) struct Parts<'a> {
    pub wasm: &'a [u8],
    /// Sections but custom ones: number and content, in order.
    sections: Vec<(u8, &'a [u8])>,
    pub types: Vec<FuncType>,
    /// Functions that it imports; its own are numbered from there on.
    pub imported: u32,
    /// Types of its own functions.
    pub functions: Vec<u32>,
    pub bodies: Vec<FunctionBody<'a>>,
    /// circom's import for exceptions, if it has its type.
    pub exception_handler: Option<u32>,
    /// Whether it exports its memory, by the name that circom gives it.
    pub shows_memory: bool,
    /// Number of its exports, and all of them as bytes.
    all_exports: (u32, &'a [u8]),
    /// Functions that it exports.
    pub exports: BTreeMap<&'a str, u32>,
    memory: Option<wasmparser::MemoryType>,
    /// What its memory is filled with at its start: address and bytes, in order.
    data: Vec<(u32, &'a [u8])>,
}

impl<'a> Parts<'a> {
    /// Takes a module apart. Nothing for one that does not read, or that is not of the plain form that circom writes:
    /// one memory of its own, filled at known addresses, and no function that runs by itself at the start.
    pub(super) fn read(wasm: &'a [u8]) -> Option<Self> {
        let mut parts = Self {
            wasm,
            sections: Vec::new(),
            types: Vec::new(),
            imported: 0,
            functions: Vec::new(),
            bodies: Vec::new(),
            exception_handler: None,
            shows_memory: false,
            all_exports: (0, &[]),
            exports: BTreeMap::new(),
            memory: None,
            data: Vec::new(),
        };
        for part in Parser::new(0).parse_all(wasm) {
            let part = part.ok()?;
            if let Some((id, range)) = part.as_section()
                && id != SectionId::Custom as u8
            {
                parts.sections.push((id, wasm.get(range)?));
            }
            match part {
                Payload::TypeSection(section) => {
                    for ty in section.into_iter_err_on_gc_types() {
                        parts.types.push(ty.ok()?);
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import.ok()?;
                        let TypeRef::Func(ty) = import.ty else { return None };
                        let ty = parts.types.get(ty as usize)?;
                        if import.name == "exceptionHandler" && ty.params() == [ValType::I32] && ty.results().is_empty()
                        {
                            parts.exception_handler = Some(parts.imported);
                        }
                        parts.imported += 1;
                    }
                }
                Payload::FunctionSection(section) => {
                    for ty in section {
                        parts.functions.push(ty.ok()?);
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        let memory = memory.ok()?;
                        let plain = !memory.memory64 && !memory.shared && memory.page_size_log2.is_none();
                        if !plain || parts.memory.replace(memory).is_some() {
                            return None;
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    let range = section.original_position()..section.range().end;
                    parts.all_exports = (section.count(), wasm.get(range)?);
                    for export in section {
                        let export = export.ok()?;
                        if export.name == BUDGET_EXPORT {
                            return None;
                        }
                        parts.shows_memory |= export.name == "memory" && export.kind == ExternalKind::Memory;
                        if export.kind == ExternalKind::Func {
                            parts.exports.insert(export.name, export.index);
                        }
                    }
                }
                Payload::StartSection { .. } | Payload::DataCountSection { .. } | Payload::GlobalSection(_) => {
                    return None;
                }
                Payload::DataSection(section) => {
                    for segment in section {
                        let segment = segment.ok()?;
                        let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else { return None };
                        let mut offset = offset_expr.get_operators_reader();
                        let (Ok(Operator::I32Const { value }), Ok(Operator::End)) = (offset.read(), offset.read())
                        else {
                            return None;
                        };
                        parts.data.push((value as u32, segment.data));
                    }
                }
                Payload::CodeSectionEntry(body) => parts.bodies.push(body),
                _ => {}
            }
        }
        (parts.memory.is_some() && parts.bodies.len() == parts.functions.len()).then_some(parts)
    }

    /// Eight bytes of the memory as it is at the start; nothing where no segment fills them, or where two do.
    pub(super) fn initial(&self, at: u32) -> Option<[u8; 8]> {
        let (at, end) = (u64::from(at), u64::from(at) + 8);
        let mut found = None;
        for (start, bytes) in &self.data {
            let start = u64::from(*start);
            if at < start + bytes.len() as u64 && start < end {
                let inside = bytes.get(usize::try_from(at.checked_sub(start)?).ok()?..)?.first_chunk()?;
                if found.replace(*inside).is_some() {
                    return None;
                }
            }
        }
        found
    }

    /// Where segments of data begin and end.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u64, u64)> {
        self.data.iter().map(|(start, bytes)| (u64::from(*start), u64::from(*start) + bytes.len() as u64))
    }

    /// The type of functions without parameters and results.
    pub(super) fn procedure(&self) -> Option<u32> {
        let found = self.types.iter().position(|ty| ty.params().is_empty() && ty.results().is_empty())?;
        u32::try_from(found).ok()
    }
}

/// Changes to a module.
#[derive(Default)]
pub(super) struct Changes {
    /// New bodies of its own functions.
    pub replaced: BTreeMap<usize, Function>,
    /// New bytes of its own functions.
    patched: BTreeMap<usize, Vec<u8>>,
    /// Functions behind its own: type and body.
    pub added: Vec<(u32, Added)>,
    /// What the module's only global is at the start.
    pub budget: i64,
    /// What a second memory holds, which nothing writes to.
    pub second_memory: Vec<u8>,
}

impl Changes {
    /// Puts edits into the body of a function. They do not overlap.
    pub(super) fn patch(&mut self, own: usize, body: &FunctionBody<'_>, mut edits: Vec<Edit>) -> Option<()> {
        if edits.is_empty() {
            return Some(());
        }
        edits.sort_by_key(|(range, _)| (range.start, range.end));
        let old = body.as_bytes();
        let mut new = Vec::with_capacity(old.len() + edits.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
        let mut done = 0;
        for (range, bytes) in edits {
            new.extend_from_slice(old.get(done..range.start)?);
            new.extend(bytes);
            done = range.end;
        }
        new.extend_from_slice(old.get(done..)?);
        self.patched.insert(own, new);
        Some(())
    }

    /// A function's bytes before it is replaced.
    fn body<'a>(&'a self, parts: &Parts<'a>, own: usize) -> Option<&'a [u8]> {
        match self.patched.get(&own) {
            Some(bytes) => Some(bytes),
            None => parts.bodies.get(own).map(FunctionBody::as_bytes),
        }
    }
}

/// A function behind a module's own.
pub(super) enum Added {
    /// As one of its own is before it is replaced.
    Kept(usize),
    New(Function),
}

/// The module with its changes, without its custom sections but one.
pub(super) fn assemble(parts: &Parts<'_>, changes: &Changes, custom: (&str, &[u8])) -> Option<Vec<u8>> {
    let mut module = Module::new();
    for (id, data) in &parts.sections {
        if *id == SectionId::Function as u8 {
            let mut section = FunctionSection::new();
            for ty in parts.functions.iter().chain(changes.added.iter().map(|(ty, _)| ty)) {
                section.function(*ty);
            }
            module.section(&section);
        } else if *id == SectionId::Code as u8 {
            let mut section = CodeSection::new();
            for own in 0..parts.bodies.len() {
                match changes.replaced.get(&own) {
                    Some(function) => section.function(function),
                    None => section.raw(changes.body(parts, own)?),
                };
            }
            for (_, added) in &changes.added {
                match added {
                    Added::Kept(own) => section.raw(changes.body(parts, *own)?),
                    Added::New(function) => section.function(function),
                };
            }
            module.section(&section);
        } else if *id == SectionId::Memory as u8 {
            let first = parts.memory?;
            let mut section = MemorySection::new();
            section.memory(MemoryType {
                minimum: first.initial,
                maximum: first.maximum,
                memory64: false,
                shared: false,
                page_size_log2: None,
            });
            let pages = whole_pages(changes.second_memory.len()) / PAGE;
            section.memory(MemoryType {
                minimum: pages,
                maximum: Some(pages),
                memory64: false,
                shared: false,
                page_size_log2: None,
            });
            module.section(&section);
            let mut section = GlobalSection::new();
            let ty = GlobalType { val_type: wasm_encoder::ValType::I64, mutable: true, shared: false };
            section.global(ty, &ConstExpr::i64_const(changes.budget));
            module.section(&section);
        } else if *id == SectionId::Export as u8 {
            let (count, exports) = parts.all_exports;
            let mut data = Vec::with_capacity(exports.len() + 64);
            count.checked_add(1)?.encode(&mut data);
            data.extend_from_slice(exports);
            BUDGET_EXPORT.encode(&mut data);
            ExportKind::Global.encode(&mut data);
            // The only global.
            0u32.encode(&mut data);
            module.section(&RawSection { id: *id, data: &data });
        } else if *id == SectionId::Data as u8 {
            let mut section = DataSection::new();
            for (at, bytes) in &parts.data {
                section.active(0, &ConstExpr::i32_const(*at as i32), bytes.iter().copied());
            }
            section.active(1, &ConstExpr::i32_const(0), changes.second_memory.iter().copied());
            module.section(&section);
        } else {
            module.section(&RawSection { id: *id, data });
        }
    }
    module.section(&CustomSection { name: custom.0.into(), data: custom.1.into() });
    Some(module.finish())
}

//! Takes a module apart, as far as rewriting needs it, and assembles it again.

use std::collections::BTreeMap;

use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, DataSection, Encode, ExportKind, Function, FunctionSection, GlobalSection,
    GlobalType, MemorySection, MemoryType, Module, RawSection, SectionId,
};
use wasmparser::{
    DataKind, DataSectionReader, ExportSectionReader, ExternalKind, FuncType, FunctionBody, FunctionSectionReader,
    ImportSectionReader, MemorySectionReader, Operator, Parser, Payload, TypeRef, TypeSectionReader, ValType,
};

use super::clock::{BUDGET_EXPORT, Edit};

/// Size of a page of memory, bytes.
const PAGE: u64 = 1 << 16;

/// Rounds up to whole pages.
pub(super) fn whole_pages(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(PAGE) * PAGE
}

/// A module's parts.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub wasm: &'a [u8],
    /// All sections except custom ones, in order: ID and content.
    sections: Vec<(u8, &'a [u8])>,
    pub types: Vec<FuncType>,
    /// Number of imported functions; the module's own are numbered from there on.
    pub imported: u32,
    /// Types of the module's own functions.
    pub functions: Vec<u32>,
    pub bodies: Vec<FunctionBody<'a>>,
    /// circom's import for exceptions, if it has the expected type.
    pub exception_handler: Option<u32>,
    /// Whether the memory is exported under the name that circom gives it.
    pub shows_memory: bool,
    /// Number of exports, and their encoding.
    all_exports: (u32, &'a [u8]),
    /// Exported functions.
    pub exports: BTreeMap<&'a str, u32>,
    memory: Option<wasmparser::MemoryType>,
    /// Initial content of the memory: address and bytes, in order.
    data: Vec<(u32, &'a [u8])>,
}

impl<'a> Parts<'a> {
    /// Takes a module apart. Returns `None` if it does not parse, or does not have the plain form that circom writes:
    /// one memory of its own, filled at known addresses, and no start function.
    pub(super) fn read(wasm: &'a [u8]) -> Option<Self> {
        let mut parts = Self { wasm, ..Self::default() };
        for part in Parser::new(0).parse_all(wasm) {
            let part = part.ok()?;
            if let Some((id, range)) = part.as_section()
                && id != SectionId::Custom as u8
            {
                parts.sections.push((id, wasm.get(range)?));
            }
            match part {
                Payload::TypeSection(section) => parts.read_types(section)?,
                Payload::ImportSection(section) => parts.read_imports(section)?,
                Payload::FunctionSection(section) => parts.read_functions(section)?,
                Payload::MemorySection(section) => parts.read_memory(section)?,
                Payload::ExportSection(section) => parts.read_exports(section)?,
                Payload::DataSection(section) => parts.read_data(section)?,
                Payload::CodeSectionEntry(body) => parts.bodies.push(body),
                Payload::StartSection { .. } | Payload::DataCountSection { .. } | Payload::GlobalSection(_) => {
                    return None;
                }
                _ => {}
            }
        }
        (parts.memory.is_some() && parts.bodies.len() == parts.functions.len()).then_some(parts)
    }

    fn read_types(&mut self, section: TypeSectionReader<'a>) -> Option<()> {
        for ty in section.into_iter_err_on_gc_types() {
            self.types.push(ty.ok()?);
        }
        Some(())
    }

    fn read_imports(&mut self, section: ImportSectionReader<'a>) -> Option<()> {
        for import in section.into_imports() {
            let import = import.ok()?;
            let TypeRef::Func(ty) = import.ty else { return None };
            let ty = self.types.get(ty as usize)?;
            if import.name == "exceptionHandler" && ty.params() == [ValType::I32] && ty.results().is_empty() {
                self.exception_handler = Some(self.imported);
            }
            self.imported += 1;
        }
        Some(())
    }

    fn read_functions(&mut self, section: FunctionSectionReader<'a>) -> Option<()> {
        for ty in section {
            self.functions.push(ty.ok()?);
        }
        Some(())
    }

    fn read_memory(&mut self, section: MemorySectionReader<'a>) -> Option<()> {
        for memory in section {
            let memory = memory.ok()?;
            let plain = !memory.memory64 && !memory.shared && memory.page_size_log2.is_none();
            if !plain || self.memory.replace(memory).is_some() {
                return None;
            }
        }
        Some(())
    }

    fn read_exports(&mut self, section: ExportSectionReader<'a>) -> Option<()> {
        let range = section.original_position()..section.range().end;
        self.all_exports = (section.count(), self.wasm.get(range)?);
        for export in section {
            let export = export.ok()?;
            if export.name == BUDGET_EXPORT {
                return None;
            }
            self.shows_memory |= export.name == "memory" && export.kind == ExternalKind::Memory;
            if export.kind == ExternalKind::Func {
                self.exports.insert(export.name, export.index);
            }
        }
        Some(())
    }

    fn read_data(&mut self, section: DataSectionReader<'a>) -> Option<()> {
        for segment in section {
            let segment = segment.ok()?;
            let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else { return None };
            let mut offset = offset_expr.get_operators_reader();
            let (Ok(Operator::I32Const { value }), Ok(Operator::End)) = (offset.read(), offset.read()) else {
                return None;
            };
            self.data.push((value as u32, segment.data));
        }
        Some(())
    }

    /// Returns eight bytes of the initial memory; `None` if no segment fills them, or if two do.
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

    /// Start and end addresses of the data segments.
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
    /// Replacements of the module's own functions.
    pub replaced: BTreeMap<usize, Function>,
    /// Own functions with edited bytes.
    patched: BTreeMap<usize, Vec<u8>>,
    /// Functions added after the module's own: type and body.
    pub added: Vec<(u32, Added)>,
    /// Initial value of the module's only global.
    pub budget: i64,
    /// Content of the second memory, which is never written to.
    pub second_memory: Vec<u8>,
}

impl Changes {
    /// Applies edits, which must not overlap, to the body of a function.
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

    /// The bytes of a function, edited but not replaced.
    fn body<'a>(&'a self, parts: &Parts<'a>, own: usize) -> Option<&'a [u8]> {
        match self.patched.get(&own) {
            Some(bytes) => Some(bytes),
            None => parts.bodies.get(own).map(FunctionBody::as_bytes),
        }
    }
}

/// A function added after a module's own.
pub(super) enum Added {
    /// One of the module's own functions, edited but not replaced.
    Kept(usize),
    New(Function),
}

/// Encodes the module with its changes, and with `custom` as its only custom section.
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
            // Index of the only global.
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

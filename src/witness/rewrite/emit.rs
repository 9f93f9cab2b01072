//! Emits WebAssembly: function bodies, and 256-bit arithmetic modulo r in four 64-bit limbs.
//!
//! 64-bit by 64-bit products and 128-bit sums are single instructions of WebAssembly's wide arithmetic
//! (<https://github.com/WebAssembly/wide-arithmetic>), which the compiler maps to the CPU's own.

use wasm_encoder::{BlockType, Function, InstructionSink, MemArg, ValType};

use super::runtime::R;

/// −1/r mod 2^64.
const MINUS_R_INVERSE: u64 = 0xc2e1_f593_efff_ffff;

/// A memory operand `offset` bytes after the address on the stack. circom's runtime does not align anything
/// deliberately.
pub(super) fn at(offset: u64) -> MemArg {
    MemArg { offset, align: 0, memory_index: 0 }
}

/// A 256-bit number in four locals, least significant limb first.
pub(super) type Wide = [u32; 4];

/// The body of a function under construction, with its locals.
pub(super) struct Body {
    params: u32,
    locals: Vec<ValType>,
    code: Vec<u8>,
}

impl Body {
    /// Starts the body of a function with `params` parameters.
    pub(super) fn new(params: u32) -> Self {
        Self { params, locals: Vec::new(), code: Vec::new() }
    }

    /// Allocates a local.
    pub(super) fn local(&mut self, ty: ValType) -> u32 {
        self.locals.push(ty);
        self.params + self.locals.len() as u32 - 1
    }

    /// Allocates a 32-bit local.
    pub(super) fn i32(&mut self) -> u32 {
        self.local(ValType::I32)
    }

    /// Allocates a 64-bit local.
    pub(super) fn i64(&mut self) -> u32 {
        self.local(ValType::I64)
    }

    /// Allocates four 64-bit locals.
    pub(super) fn wide(&mut self) -> Wide {
        std::array::from_fn(|_| self.i64())
    }

    /// The sink for instructions.
    pub(super) fn op(&mut self) -> InstructionSink<'_> {
        InstructionSink::new(&mut self.code)
    }

    /// Adds the end and returns the function.
    pub(super) fn finish(mut self) -> Function {
        self.op().end();
        let mut function = Function::new_with_locals_types(self.locals);
        function.raw(self.code);
        function
    }

    /// Emits an `if` on the number on the stack.
    pub(super) fn when(&mut self, then: impl FnOnce(&mut Self)) {
        self.op().if_(BlockType::Empty);
        then(self);
        self.op().end();
    }

    /// Emits an `if` and `else` on the number on the stack.
    pub(super) fn choose(&mut self, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        self.op().if_(BlockType::Empty);
        then(self);
        self.op().else_();
        otherwise(self);
        self.op().end();
    }

    /// Repeats `body` until it branches to label 1 from its outermost level.
    pub(super) fn repeat(&mut self, body: impl FnOnce(&mut Self)) {
        self.op().block(BlockType::Empty).loop_(BlockType::Empty);
        body(self);
        self.op().br(0).end().end();
    }

    /// Calls a function with the given locals as arguments.
    pub(super) fn call(&mut self, function: u32, params: &[u32]) {
        for p in params {
            self.op().local_get(*p);
        }
        self.op().call(function);
    }

    /// Copies a number's limbs.
    pub(super) fn set(&mut self, to: Wide, from: Wide) {
        for (to, from) in to.into_iter().zip(from) {
            self.op().local_get(from).local_set(to);
        }
    }

    /// Reads 32 bytes at `offset` from the address in a local.
    pub(super) fn load(&mut self, address: u32, offset: u64) -> Wide {
        let x = self.wide();
        for (limb, i) in x.into_iter().zip(0..) {
            self.op().local_get(address).i64_load(at(offset + 8 * i)).local_set(limb);
        }
        x
    }

    /// Writes 32 bytes at `offset` from the address in a local.
    pub(super) fn store(&mut self, address: u32, offset: u64, x: Wide) {
        for (limb, i) in x.into_iter().zip(0..) {
            self.op().local_get(address).local_get(limb).i64_store(at(offset + 8 * i));
        }
    }

    /// Puts on the stack whether any of the numbers has a bit at or above 2^254.
    pub(super) fn large(&mut self, numbers: &[Wide]) {
        self.op().i64_const(0);
        for x in numbers {
            self.op().local_get(x[3]).i64_or();
        }
        self.op().i64_const(62).i64_shr_u().i64_eqz().i32_eqz();
    }

    /// Puts on the stack whether a number is zero.
    pub(super) fn is_zero(&mut self, x: Wide) {
        self.op().local_get(x[0]).local_get(x[1]).i64_or().local_get(x[2]).i64_or().local_get(x[3]).i64_or().i64_eqz();
    }

    /// Puts on the stack whether two numbers are equal.
    pub(super) fn same(&mut self, x: Wide, y: Wide) {
        self.op().i64_const(0);
        for (x, y) in x.into_iter().zip(y) {
            self.op().local_get(x).local_get(y).i64_xor().i64_or();
        }
        self.op().i64_eqz();
    }

    /// x − y modulo 2^256; `borrow` becomes 0, or −1 if x is below y.
    pub(super) fn difference(&mut self, x: Limbs, y: Limbs, borrow: u32) -> Wide {
        let z = self.wide();
        for (i, limb) in z.into_iter().enumerate() {
            x.get(self, i);
            self.op().i64_const(0);
            y.get(self, i);
            self.op().i64_const(0).i64_sub128();
            if i > 0 {
                self.op().local_get(borrow).local_get(borrow).i64_add128();
            }
            self.op().local_set(borrow).local_set(limb);
        }
        z
    }

    /// x + y modulo 2^256; `carry` becomes 0 or 1.
    pub(super) fn sum(&mut self, x: Limbs, y: Limbs, carry: u32) -> Wide {
        let z = self.wide();
        for (i, limb) in z.into_iter().enumerate() {
            x.get(self, i);
            self.op().i64_const(0);
            y.get(self, i);
            self.op().i64_const(0).i64_add128();
            if i > 0 {
                self.op().local_get(carry).i64_const(0).i64_add128();
            }
            self.op().local_set(carry).local_set(limb);
        }
        z
    }

    /// Sets x to y if `mask` is zero.
    fn select(&mut self, x: Wide, y: Wide, mask: u32) {
        for (x, y) in x.into_iter().zip(y) {
            self.op().local_get(x).local_get(y).local_get(mask).i64_eqz().i32_eqz().select().local_set(x);
        }
    }

    /// Subtracts r from x if x is at least r: reduces an x below 2r modulo r.
    pub(super) fn reduce(&mut self, x: Wide) {
        let borrow = self.i64();
        let less = self.difference(Limbs::Of(x), Limbs::Are(R), borrow);
        self.select(x, less, borrow);
    }

    /// x + y modulo r, of numbers whose sum is below 2r.
    pub(super) fn add_mod(&mut self, x: Wide, y: Wide) -> Wide {
        let carry = self.i64();
        let z = self.sum(Limbs::Of(x), Limbs::Of(y), carry);
        self.reduce(z);
        z
    }

    /// x − y, plus r if x is below y.
    pub(super) fn sub_mod(&mut self, x: Wide, y: Wide) -> Wide {
        let (borrow, carry) = (self.i64(), self.i64());
        let z = self.difference(Limbs::Of(x), Limbs::Of(y), borrow);
        let masked: Wide = std::array::from_fn(|i| {
            let limb = self.i64();
            self.op().local_get(borrow).i64_const(R[i] as i64).i64_and().local_set(limb);
            limb
        });
        self.sum(Limbs::Of(z), Limbs::Of(masked), carry)
    }

    /// x · y / 2^256 modulo r, below r, for x and y below 2^254: Montgomery's product, limb by limb with a reduction
    /// after each (Koç, Acar and Kaliski, "Analyzing and comparing Montgomery multiplication algorithms", 1996: CIOS).
    pub(super) fn product(&mut self, x: Wide, y: Limbs) -> Wide {
        let t = self.wide();
        let (m, carry, reduced) = (self.i64(), self.i64(), self.i64());
        for i in 0..4 {
            for j in 0..4 {
                self.op().local_get(x[j]);
                y.get(self, i);
                self.op().i64_mul_wide_u();
                if i > 0 {
                    self.op().local_get(t[j]).i64_const(0).i64_add128();
                }
                if j > 0 {
                    self.op().local_get(carry).i64_const(0).i64_add128();
                }
                self.op().local_set(carry).local_set(t[j]);
                self.reduce_limb(t, j, m, reduced);
            }
            // No carry: the sum of both words is below 2^64, because x, y and r are below 2^254.
            self.op().local_get(reduced).local_get(carry).i64_add().local_set(t[3]);
        }
        self.reduce(t);
        t
    }

    /// x / 2^256 modulo r, below r, for x below 2^254: the reduction of [`Self::product`] alone.
    pub(super) fn reduction(&mut self, x: Wide) -> Wide {
        let t = self.wide();
        let (m, reduced) = (self.i64(), self.i64());
        self.set(t, x);
        for _ in 0..4 {
            for j in 0..4 {
                self.reduce_limb(t, j, m, reduced);
            }
            self.op().local_get(reduced).local_set(t[3]);
        }
        self.reduce(t);
        t
    }

    /// One step of a row that makes t a multiple of 2^64 by adding m · r, and divides by 2^64.
    fn reduce_limb(&mut self, t: Wide, j: usize, m: u32, carry: u32) {
        if j == 0 {
            self.op().local_get(t[0]).i64_const(MINUS_R_INVERSE as i64).i64_mul().local_set(m);
        }
        self.op().local_get(m).i64_const(R[j] as i64).i64_mul_wide_u();
        self.op().local_get(t[j]).i64_const(0).i64_add128();
        if j == 0 {
            self.op().local_set(carry).drop();
        } else {
            self.op().local_get(carry).i64_const(0).i64_add128().local_set(carry).local_set(t[j - 1]);
        }
    }
}

/// Four limbs, in locals or constant.
#[derive(Clone, Copy)]
pub(super) enum Limbs {
    Of(Wide),
    Are([u64; 4]),
}

impl Limbs {
    fn get(self, body: &mut Body, i: usize) {
        match self {
            Self::Of(x) => body.op().local_get(x[i]),
            Self::Are(x) => body.op().i64_const(x[i] as i64),
        };
    }
}

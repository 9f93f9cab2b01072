//! x
use super::FormatError;
use ark_ff::BigInteger256;
/// x
#[derive(Debug, Clone)]
pub struct R1cs {
    /// x
    pub n_wires: u32,
    /// x
    pub n_pub_out: u32,
    /// x
    pub n_pub_in: u32,
    /// x
    pub n_prv_in: u32,
    /// x
    pub n_labels: u64,
    /// x
    pub constraints: Constraints,
}
/// x Compressed rows, three a constraint (A, B, C).
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    /// x offsets[3*i + m] .. offsets[3*i + m + 1] are the terms of matrix m of constraint i; length 3*n + 1
    pub offsets: Vec<u64>,
    /// x
    pub terms: Vec<(u32, BigInteger256)>,
}
impl Constraints {
    /// x
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1) / 3
    }
    /// x
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// x m: 0 A, 1 B, 2 C
    pub fn row(&self, constraint: usize, m: usize) -> &[(u32, BigInteger256)] {
        let i = 3 * constraint + m;
        &self.terms[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}
/// x
pub fn parse(_file: &[u8]) -> Result<R1cs, FormatError> {
    todo!()
}

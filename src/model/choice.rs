//! What proofs are computed with, as configured.

use std::str::FromStr;

use super::clip;

/// Which backend computes proofs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// The first of cuda, icicle and cpu that has a usable device.
    #[default]
    Auto,
    /// NVIDIA GPUs with the crate's own kernels, or none.
    Cuda,
    /// Devices driven by ICICLE's libraries, or none.
    Icicle,
    /// The CPU.
    Cpu,
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "icicle" => Ok(Self::Icicle),
            "cpu" => Ok(Self::Cpu),
            _ => Err(format!("expected auto, cuda, icicle or cpu, got {:?}", clip(s, 40))),
        }
    }
}

/// An instruction set for field arithmetic, or the best one available.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Instructions {
    /// The fastest one that this CPU supports.
    #[default]
    Auto,
    /// AVX-512 with IFMA: 52-bit integer products, eight at a time. Intel from Ice Lake, AMD from Zen 4.
    Avx512Ifma,
    /// AVX2 with FMA: 51-bit products by the floating-point units, four at a time. Intel from Haswell, AMD from Zen.
    Avx2,
    /// One product at a time, on any CPU.
    Portable,
}

impl Instructions {
    /// Every set, fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512Ifma, Self::Avx2, Self::Portable];

    /// The name, as in `PROVER_CPU`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Avx512Ifma => "avx512ifma",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

impl FromStr for Instructions {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = [Self::Auto].into_iter().chain(Self::ALL).find(|set| set.as_str() == s);
        known.ok_or_else(|| format!("expected auto, avx512ifma, avx2 or portable, got {:?}", clip(s, 40)))
    }
}

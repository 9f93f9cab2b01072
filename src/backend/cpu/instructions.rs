//! The instruction set of the CPU's field arithmetic, chosen at run time.

use super::super::{BackendError, DeviceKind};
#[cfg(target_arch = "x86_64")]
use super::lanes::{avx2::Avx2, ifma::Avx512Ifma};
pub use crate::model::Instructions;

impl Instructions {
    /// Returns the sets that this CPU has, fastest first; never empty, since every CPU has the portable one.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }

    fn is_available(self) -> bool {
        match self {
            Self::Auto | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Ifma => Avx512Ifma::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Ifma | Self::Avx2 => false,
        }
    }

    /// Returns the set itself, or the fastest available one for `auto`. Fails if this CPU does not have it.
    pub(super) fn resolve(self) -> Result<Self, BackendError> {
        let available = Self::available();
        match self {
            Self::Auto => Ok(available.first().copied().unwrap_or(Self::Portable)),
            set if available.contains(&set) => Ok(set),
            set => {
                let available: Vec<_> = available.into_iter().map(Self::as_str).collect();
                let why = format!("this processor has no {}: it has {}", set.as_str(), available.join(", "));
                Err(BackendError::Unavailable { device: DeviceKind::Cpu.label(0), why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn auto_is_the_fastest_there_is_and_what_is_not_there_is_refused() {
        let available = Instructions::available();
        assert_eq!(available.last(), Some(&Instructions::Portable));
        assert_eq!(Instructions::Auto.resolve().unwrap(), available[0]);
        for set in Instructions::ALL {
            assert_eq!(set.as_str().parse(), Ok(set));
            match set.resolve() {
                Ok(resolved) => assert!(available.contains(&set) && resolved == set),
                Err(error) => {
                    assert!(!available.contains(&set));
                    assert!(error.to_string().contains(set.as_str()) && error.to_string().contains("portable"));
                }
            }
        }
        assert!("sse2".parse::<Instructions>().unwrap_err().contains("avx512ifma"));
    }
}

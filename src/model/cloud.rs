//! Object stores by whose they are.

/// Whose object store, or whose protocol a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon's S3, and the many that are like it.
    Amazon,
    /// Google's Cloud Storage.
    Google,
    /// Azure's Blob Storage.
    Azure,
}

impl Cloud {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Amazon, Self::Google, Self::Azure];

    /// What an address in it begins with.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Amazon => "s3://",
            Self::Google => "gs://",
            Self::Azure => "az://",
        }
    }
}

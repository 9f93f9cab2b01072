//! Cloud providers of object stores.

/// The provider of an object store, or the provider whose protocol the store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon S3, and the many stores compatible with it.
    Amazon,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Cloud {
    /// All providers.
    pub const ALL: [Self; 3] = [Self::Amazon, Self::Google, Self::Azure];

    /// Returns the URL scheme, such as `s3://`.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Amazon => "s3://",
            Self::Google => "gs://",
            Self::Azure => "az://",
        }
    }
}

//! The queue on Redis alone.

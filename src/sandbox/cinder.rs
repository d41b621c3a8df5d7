//! The embedded Cinder.

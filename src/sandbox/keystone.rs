//! The embedded Keystone.

//! The plugin socket: bind, adopt from systemd, replace a stale one, never steal a live one.

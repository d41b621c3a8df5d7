//! Wires the parts together and runs them: settings → socket, driver, background work; signals,
//! sd_notify, orderly stop.

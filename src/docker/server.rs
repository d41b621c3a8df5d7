//! The socket server: accept loop, routes, one task an operation.

//! Sends requests: time-outs, retries, error mapping, request ids.

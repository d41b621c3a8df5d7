//! The service catalog: region + interface + type → endpoint.

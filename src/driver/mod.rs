//! Decisions: where Docker, the cloud and this host meet.

//! Volumes as sparse files, exported as loop devices or iSCSI targets.

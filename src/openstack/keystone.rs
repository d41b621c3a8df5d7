//! Keystone: password, application credential or token → token and catalog, renewed by one caller for all.

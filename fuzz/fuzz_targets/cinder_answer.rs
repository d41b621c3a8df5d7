#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cinder_docker_driver::fuzzing::cinder_answer(data));

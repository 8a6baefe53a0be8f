//! The devices that tests run on: `host` always, a WGSL adapter where there is one. It must never skip in silence.

use gaufre::device::Device;

/// The embedded device on two threads.
pub fn host() -> Device {
    Device::host(2).expect("the host device opens anywhere")
}

/// A WGSL adapter: hardware where there is one, else software. `None` is said on standard error, and is a failure where
/// the environment variable `GAUFRE_REQUIRE_ADAPTER` is set.
pub fn adapter(test: &str) -> Option<Device> {
    let found = Device::open("gpu", 0).or_else(|_| Device::open("software", 0));
    match found {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("GAUFRE_REQUIRE_ADAPTER").is_none(), "{test}: {error}");
            eprintln!("NOT RUN on an adapter: {test}: {error}");
            None
        }
    }
}

/// Every device that is there.
pub fn devices(test: &str) -> Vec<Device> {
    [Some(host()), adapter(test)].into_iter().flatten().collect()
}

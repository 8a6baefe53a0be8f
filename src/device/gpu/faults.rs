//! How errors of an adapter come back: caught in error scopes where they arise, or stored by the driver's callbacks
//! until the next call, and always typed and named after what ran. It must never panic and never drop an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::DeviceError;

/// Errors that arrive outside of any call, and the names of what was submitted last.
#[derive(Default)]
pub struct Faults {
    any: AtomicBool,
    stored: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    lost: Option<String>,
    error: Option<wgpu::Error>,
    place: String,
}

impl Faults {
    /// Stores from now on what the device reports on its own.
    pub fn watch(device: &wgpu::Device) -> Arc<Faults> {
        let faults = Arc::new(Faults::default());
        let sink = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            sink.stored().error.get_or_insert(error);
            sink.any.store(true, Ordering::Release);
        }));
        let sink = faults.clone();
        device.set_device_lost_callback(move |reason, text| {
            sink.stored().lost.get_or_insert(format!("{reason:?} {text}"));
            sink.any.store(true, Ordering::Release);
        });
        faults
    }

    /// Names what is handed to the device now.
    pub fn submitted(&self, place: &str) {
        let mut stored = self.stored();
        stored.place.clear();
        stored.place.push_str(place);
    }

    /// The stored error, if any. A lost device stays lost.
    pub fn check(&self) -> Result<(), DeviceError> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut stored = self.stored();
        let place = stored.place.clone();
        if let Some(reason) = stored.lost.clone() {
            return Err(DeviceError::Lost { place, reason });
        }
        self.any.store(false, Ordering::Release);
        stored.error.take().map_or(Ok(()), |error| Err(typed(&place, 0, error)))
    }

    /// Runs `f` in a scope for every kind of error; `fail` types what it caught.
    pub fn scoped<T>(
        &self,
        device: &wgpu::Device,
        fail: impl FnOnce(wgpu::Error) -> DeviceError,
        f: impl FnOnce() -> T,
    ) -> Result<T, DeviceError> {
        let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal]
            .map(|filter| device.push_error_scope(filter));
        let value = f();
        // Popped in reverse; on native adapters the futures are ready at once.
        let mut caught = None;
        for scope in scopes.into_iter().rev() {
            caught = pollster::block_on(scope.pop()).or(caught);
        }
        if caught.is_some() {
            // What fails first on a lost device is often a mere consequence; the loss itself is told by a poll.
            let _ = device.poll(wgpu::PollType::Poll);
        }
        self.check()?;
        caught.map_or(Ok(value), |error| Err(fail(error)))
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error of the device at a place that wanted `bytes` (0: unknown).
pub fn typed(place: &str, bytes: u64, error: wgpu::Error) -> DeviceError {
    match error {
        wgpu::Error::OutOfMemory { .. } => DeviceError::OutOfMemory { place: place.into(), bytes },
        error => DeviceError::Validation { place: place.into(), reason: words(&error) },
    }
}

/// An error met while a program was compiled.
pub fn refused(program: &str, error: wgpu::Error) -> DeviceError {
    match error {
        wgpu::Error::OutOfMemory { .. } => DeviceError::OutOfMemory { place: program.into(), bytes: 0 },
        error => DeviceError::Program { program: program.into(), reason: words(&error) },
    }
}

/// The driver's words without the frame that wgpu puts round them.
fn words(error: &wgpu::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("Validation Error\n\nCaused by:\n").unwrap_or(&text).trim().into()
}

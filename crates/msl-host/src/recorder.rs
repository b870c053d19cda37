//! A handle to a recording server of its own: the client, the record, and the shutdown of the server's
//! thread.

use crate::execute::{Edit, Session};
use crate::fallback;
use crate::log::{Label, Log};
use crate::lower;
use crate::properties::{apple_m1, apple_m1_before_macos_15};
use crate::server::{Lower, RecordingServer, lock};
use cubecl::prelude::Client;
use cubecl_common::device::DeviceId;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_ir::DeviceProperties;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A client of its own recording server, and the server's record.
///
/// What a launch is refused for (its kernel does not lower, is over budget or faults while it is executed) is
/// the error of the next read of its outputs, as on a device.
pub struct Recorder {
    client: Client,
    log: Arc<Mutex<Log>>,
    /// Dropped after the client: the thread waits for the last one.
    _thread: ServerThread,
}

/// Shuts the server's thread down when dropped. CubeCL would keep it for the life of the process, and an idle
/// one polls thousands of times a second.
struct ServerThread(DeviceId);

impl Drop for ServerThread {
    fn drop(&mut self) {
        DeviceHandle::<RecordingServer>::shutdown(self.0);
    }
}

impl Recorder {
    /// A recorder with an M1's properties.
    pub fn apple_m1() -> Self {
        Self::with(apple_m1(), lower::lower_once, None)
    }

    /// A recorder of a device with other properties, which lowers to MSL as well.
    pub fn with_properties(properties: DeviceProperties) -> Self {
        Self::with(properties, lower::lower_once, None)
    }

    /// A recorder that lowers through WGSL, as a Mac before macOS 15 does.
    pub fn before_macos_15() -> Self {
        Self::with(apple_m1_before_macos_15(), fallback::lower, None)
    }

    /// An M1 whose kernels are executed, on the CPU. A kernel with [`violations`](crate::violations) is
    /// refused.
    pub fn executing() -> Self {
        Self::with(apple_m1(), lower::lower_within_budget, Some(Session::new(None)))
    }

    /// [`Recorder::executing`] that executes kernels with [`violations`](crate::violations) too.
    pub fn executing_any() -> Self {
        Self::with(apple_m1(), lower::lower_once, Some(Session::new(None)))
    }

    /// [`Recorder::executing`] for kernels whose text is changed by `edit` before it is compiled: to see that
    /// tests notice a defect.
    pub fn executing_edited(edit: Edit) -> Self {
        Self::with(apple_m1(), lower::lower_within_budget, Some(Session::new(Some(edit))))
    }

    fn with(properties: DeviceProperties, lower: Lower, execution: Option<Session>) -> Self {
        // CubeCL has one server per device id.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let device = DeviceId::new(0, NEXT.fetch_add(1, Ordering::Relaxed));
        let server = RecordingServer::new(device, properties, lower, execution);
        let log = server.log();
        Self { client: Client::init(device, server), log, _thread: ServerThread(device) }
    }

    /// The client to pass to launch functions.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs `launches`, whose kernels are recorded under `label`, and waits for the server.
    pub fn record<T>(&self, label: &Label, launches: impl FnOnce(&Client) -> T) -> T {
        self.log().label = Arc::new(label.clone());
        let result = launches(&self.client);
        // Launches are queued on the server's thread; the flush returns after the last of them.
        let _ = self.client.flush();
        result
    }

    /// The record so far. Do not launch while holding it.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

//! A CubeCL server that lowers and records every launch and, with a session, executes it. Ordinary launch
//! functions run on it unchanged, so they define the list of kernels and none can be forgotten.
//!
//! Memory is plain host memory, allocated when it is first touched: a launch over gigabytes costs nothing
//! here.

use crate::execute::{self, Grid, Session};
use crate::log::{Kernel, Launch, Log};
use crate::lower::{self, Lowered};
use crate::properties::apple_m1;
use cubecl::prelude::CubeCount;
use cubecl::server::{
    BufferBinding, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServiceId};
use cubecl_common::profile::ProfileDuration;
use cubecl_environment::{backtrace::BackTrace, future::DynFut, stream::StreamId};
use cubecl_ir::{DeviceProperties, TargetProperties};
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::kernel::CubeKernel;
use cubecl_runtime::logging::ServerLogger;
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::memory_management::{
    ManagedMemoryHandle, ManagedMemoryId, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_server::storage::{BytesResource, BytesStorage, ComputeStorage, ManagedResource, StorageHandle};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A poisoned log still holds whole entries: it is only ever pushed to.
pub(crate) fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One allocation. `storage` is `None` until the first read, write or `get_resource`.
struct Allocation {
    handle: ManagedMemoryHandle,
    size: u64,
    storage: Option<StorageHandle>,
    /// The failure of the last launch that should have written it.
    failed: Option<ServerError>,
}

/// How a server lowers a kernel.
pub(crate) type Lower = fn(&dyn CubeKernel) -> Result<Lowered, String>;

/// The server behind a [`Recorder`](crate::Recorder).
pub(crate) struct RecordingServer {
    utilities: Arc<ServerUtilities>,
    lower: Lower,
    execution: Option<Session>,
    memory: HashMap<ManagedMemoryId, Allocation>,
    bytes: BytesStorage,
    log: Arc<Mutex<Log>>,
}

impl std::fmt::Debug for RecordingServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingServer").field("allocations", &self.memory.len()).finish_non_exhaustive()
    }
}

impl RecordingServer {
    /// A server that lowers by `lower` and, with a session, executes.
    pub(crate) fn new(
        device: DeviceId,
        properties: DeviceProperties,
        lower: Lower,
        execution: Option<Session>,
    ) -> Self {
        let layout = ContiguousMemoryLayoutPolicy::new(properties.memory.alignment as usize);
        // The writer of graph captures is dropped: nothing is captured here.
        let (utilities, _captures) = ServerUtilities::init(
            ServiceId::of::<Self>(device),
            "recorded<msl>",
            properties,
            TargetProperties { mma: Default::default() },
            Arc::new(ServerLogger::default()),
            layout,
        );
        Self {
            utilities: Arc::new(utilities),
            lower,
            execution,
            memory: HashMap::new(),
            bytes: BytesStorage::default(),
            log: Arc::default(),
        }
    }

    /// The record, shared with the server.
    pub(crate) fn log(&self) -> Arc<Mutex<Log>> {
        self.log.clone()
    }

    /// The host memory that `binding` covers.
    fn resource(&mut self, binding: &BufferBinding) -> Result<BytesResource, ServerError> {
        let missing = || {
            let reason = format!("no memory was initialized for {:?}", binding.memory.id()).into();
            ServerError::Io(IoError::NotFound { backtrace: BackTrace::capture(), reason })
        };
        let allocation = self.memory.get_mut(&binding.memory.id()).ok_or_else(missing)?;
        let storage = match &allocation.storage {
            Some(storage) => storage.clone(),
            None => {
                let storage = self.bytes.alloc(allocation.size)?;
                if self.execution.is_some() {
                    // Uninitialized memory reads as NaN.
                    self.bytes.get(&storage)?.write().fill(0xff);
                }
                allocation.storage.insert(storage).clone()
            }
        };
        let part = storage
            .offset_start(binding.offset_start.unwrap_or(0))
            .offset_end(binding.offset_end.unwrap_or(0));
        Ok(self.bytes.get(&part)?)
    }

    /// The failure of the launch that should have written one of `bindings`, if there is one.
    fn check_written<'a>(
        &self,
        mut bindings: impl Iterator<Item = &'a BufferBinding>,
    ) -> Result<(), ServerError> {
        let failed = |binding: &BufferBinding| self.memory.get(&binding.memory.id())?.failed.clone();
        bindings.find_map(failed).map_or(Ok(()), Err)
    }

    fn release_unused(&mut self) {
        let bytes = &mut self.bytes;
        self.memory.retain(|_, allocation| {
            let used = !allocation.handle.is_free();
            if let (false, Some(storage)) = (used, &allocation.storage) {
                bytes.dealloc(storage.id);
            }
            used
        });
    }

    /// Lowers `kernel` at its first launch, records the launch, and executes it if this server executes.
    fn run(
        &mut self,
        kernel: &dyn CubeKernel,
        count: &CubeCount,
        arguments: &KernelArguments,
    ) -> Result<(), String> {
        let compiled = self.record(kernel, count, arguments)?;
        let (Some(compiled), CubeCount::Static(x, y, z)) = (compiled, count.clone()) else {
            return Ok(());
        };
        let threads = kernel.id().cube_dim;
        let grid = Grid { groups: (x, y, z), threads: (threads.x, threads.y, threads.z) };
        let mut resources = Vec::new();
        for binding in arguments.buffers() {
            self.check_written(std::iter::once(binding)).map_err(|error| error.to_string())?;
            resources.push(self.resource(binding).map_err(|error| error.to_string())?);
        }
        let buffers: Vec<*mut [u8]> = resources.iter_mut().map(|part| &raw mut *part.write()).collect();
        // SAFETY: any u64s are valid bytes.
        let info = unsafe { arguments.info.data.as_slice().align_to::<u8>().1 };
        let Some(execution) = &mut self.execution else {
            return Ok(());
        };
        // SAFETY: the resources stay allocated during the call, and only this thread uses them.
        unsafe { execution.runner.run(&compiled, grid, &buffers, info) }
    }

    /// Lowers `kernel` at its first launch and records the launch. Returns the kernel to run, if this server
    /// executes.
    fn record(
        &mut self,
        kernel: &dyn CubeKernel,
        count: &CubeCount,
        arguments: &KernelArguments,
    ) -> Result<Option<Arc<execute::Kernel>>, String> {
        let CubeCount::Static(x, y, z) = *count else {
            return Err("a grid size in device memory is not supported".into());
        };
        let id = kernel.id();
        let mut log = lock(&self.log);
        let label = log.label.clone();
        let index = match log.index.get(&id) {
            Some(&index) => index,
            None => {
                let index = log.kernels.len();
                log.index.insert(id.clone(), index);
                log.kernels.push(Kernel { id, label: label.clone(), lowered: (self.lower)(kernel) });
                index
            }
        };
        let buffers = arguments.buffers().map(BufferBinding::size_in_used).collect();
        let info_bytes = size_of_val(arguments.info.data.as_slice());
        log.launches.push(Launch { kernel: index, label, grid: (x, y, z), buffers, info_bytes });
        let lowered = log.kernels[index].lowered.as_ref().map_err(Clone::clone)?;
        let compiled = |execution: &mut Session| execution.kernel(&log.kernels[index].id, &lowered.msl);
        Ok(self.execution.as_mut().map(compiled))
    }
}

impl DeviceService for RecordingServer {
    fn init(device: DeviceId) -> Self {
        Self::new(device, apple_m1(), lower::lower, None)
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl ServerCommunication for RecordingServer {}

impl Server for RecordingServer {
    fn initialize_memory(
        &mut self,
        handle: ManagedMemoryHandle,
        size: u64,
        _stream: StreamId,
    ) -> Result<(), ServerError> {
        self.release_unused();
        let id = handle.clone().binding().id();
        self.memory.insert(id, Allocation { handle, size, storage: None, failed: None });
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let copy = |server: &mut Self, descriptor: &CopyDescriptor| {
            check_contiguous(descriptor)?;
            server.check_written(std::iter::once(&descriptor.handle))?;
            Ok(Bytes::from_bytes_vec(server.resource(&descriptor.handle)?.read().to_vec()))
        };
        let result = descriptors.iter().map(|descriptor| copy(self, descriptor)).collect();
        Box::pin(async move { result })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {
        for (descriptor, data) in descriptors {
            let result = check_contiguous(&descriptor).and_then(|()| self.resource(&descriptor.handle));
            let failed = match result {
                Ok(mut resource) => {
                    let target = resource.write();
                    let length = target.len().min(data.len());
                    target[..length].copy_from_slice(&data[..length]);
                    None
                }
                Err(error) => Some(error),
            };
            if let Some(allocation) = self.memory.get_mut(&descriptor.handle.memory.id()) {
                allocation.failed = failed;
            }
        }
    }

    fn sync(&mut self, handles: Vec<BufferBinding>, _stream: StreamId) -> DynFut<Result<(), ServerError>> {
        let result = self.check_written(handles.iter());
        Box::pin(async move { result })
    }

    fn check(&mut self, handles: Vec<BufferBinding>, _stream: StreamId) -> Result<(), ServerError> {
        self.check_written(handles.iter())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        arguments: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let result = self.run(kernel.as_ref(), &count, &arguments);
        let error = result.err().map(|reason| {
            let reason = format!("{}: {reason}", kernel.id().short_name());
            ServerError::Generic { reason, backtrace: BackTrace::capture() }
        });
        if error.is_some() {
            for binding in arguments.buffers_written(None) {
                if let Some(allocation) = self.memory.get_mut(&binding.memory.id()) {
                    allocation.failed = error.clone();
                }
            }
        }
    }

    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _stream: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        self.release_unused();
        Ok(())
    }

    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        let reason = "a recording server has no times to profile".into();
        Err(ServerError::Generic { reason, backtrace: BackTrace::capture() })
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        _token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _mode: MemoryAllocationMode, _stream: StreamId) {}
}

impl ServerStorage for RecordingServer {
    type Storage = BytesStorage;

    fn get_resource(
        &mut self,
        binding: BufferBinding,
        _stream: StreamId,
    ) -> Result<ManagedResource<BytesResource>, ServerError> {
        self.check_written(std::iter::once(&binding))?;
        let resource = self.resource(&binding)?;
        Ok(ManagedResource::new(binding.memory, resource))
    }
}

/// Host copies are of whole contiguous buffers, as on wgpu.
fn check_contiguous(descriptor: &CopyDescriptor) -> Result<(), ServerError> {
    let mut expected = 1;
    for (&size, &stride) in descriptor.shape.iter().zip(descriptor.strides.iter()).rev() {
        if size > 1 && stride != expected {
            return Err(ServerError::Io(IoError::UnsupportedStrides { backtrace: BackTrace::capture() }));
        }
        expected *= size;
    }
    Ok(())
}

//! A clip on its way through a model, chunk by chunk: what the layers keep of the frames that went before.

use burn::tensor::Tensor;

/// What one layer keeps.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The frames that its next outputs need.
    pub(crate) frames: Option<Tensor<5>>,
    begun: bool,
}

impl Slot {
    /// Whether the clip's first frames are reaching the layer now.
    pub(crate) fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }
}

/// The slots of all layers, in the order in which a chunk passes them.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    slots: Vec<Slot>,
    next: usize,
    ends: bool,
}

impl Stream {
    /// Starts the next chunk; `last` if no chunk follows it.
    pub(crate) fn chunk(&mut self, last: bool) {
        self.next = 0;
        self.ends = last;
    }

    /// Whether this chunk is the clip's last.
    pub(crate) fn ends(&self) -> bool {
        self.ends
    }

    /// The slot of the layer that asks.
    pub(crate) fn slot(&mut self) -> &mut Slot {
        if self.next == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.next += 1;
        &mut self.slots[self.next - 1]
    }

    /// Bytes of all frames kept.
    pub(crate) fn bytes(&self) -> usize {
        let size = |frames: &Tensor<5>| frames.shape().num_elements() * frames.dtype().size();
        self.slots.iter().filter_map(|slot| slot.frames.as_ref()).map(size).sum()
    }
}

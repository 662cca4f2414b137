//! One value per sample and channel.

use crate::View;

/// A checked `[n, C]` view: a time embedding, or the scale or shift of a norm, often a slice of a wider row.
#[derive(Clone, Copy)]
pub(crate) struct PerChannel<'a> {
    view: View<'a>,
    samples: usize,
    channels: usize,
}

impl<'a> PerChannel<'a> {
    /// The values of `view`.
    ///
    /// # Panics
    /// If it is not `[samples, channels]`.
    pub(crate) fn new(view: View<'a>, samples: usize, channels: usize) -> Self {
        assert_eq!(view.shape(), [samples, channels], "one value per sample and channel");
        Self { view, samples, channels }
    }

    /// The value of a channel of a sample.
    ///
    /// # Panics
    /// If there is no such channel or sample.
    #[inline(always)]
    pub(crate) fn at(&self, sample: usize, channel: usize) -> f32 {
        assert!(sample < self.samples && channel < self.channels);
        let strides = self.view.layout().strides();
        // SAFETY: the index is inside the view's shape, and every element of a view is readable.
        unsafe { *self.view.as_ptr().add(sample * strides[0] + channel * strides[1]) }
    }
}

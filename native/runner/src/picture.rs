//! Images among the outputs, as PNG.

use std::path::Path;

use crate::failure::Failure;

/// Images side by side, of 1 or 3 values of a pixel.
pub struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    /// [height, width, channels]
    pixels: Vec<u8>,
}

impl Picture {
    /// Of values [n, H, W] or [n, 1 or 3, H, W]; none of another shape.
    ///
    /// Grey images span black to white from their smallest to their largest value. Colours are taken to lie in 0 … 1, or, if
    /// some are below 0, in -1 … 1; what is beyond is clipped.
    pub fn of(shape: &[usize], values: &[f32]) -> Option<Picture> {
        let (n, channels, height, width) = match *shape {
            [n, height, width] => (n, 1, height, width),
            [n, channels @ (1 | 3), height, width] => (n, channels, height, width),
            _ => return None,
        };
        if height < 2 || width < 2 || values.len() != n * channels * height * width {
            return None;
        }
        let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
        let (low, high) = match channels {
            1 => (low, high.max(low + f32::MIN_POSITIVE)),
            _ => (if low < 0.0 { -1.0 } else { 0.0 }, 1.0),
        };
        let mut pixels = vec![0; height * n * width * channels];
        for (index, &value) in values.iter().enumerate() {
            let (x, rest) = (index % width, index / width);
            let (y, rest) = (rest % height, rest / height);
            let (channel, image) = (rest % channels, rest / channels);
            let level = ((value - low) / (high - low)).clamp(0.0, 1.0);
            pixels[((y * n + image) * width + x) * channels + channel] = (255.0 * level).round() as u8;
        }
        Some(Picture { width: n * width, height, channels, pixels })
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::cannot_write(path, &error);
        let file = std::fs::File::create(path).map_err(failed)?;
        let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), self.width as u32, self.height as u32);
        encoder.set_color(if self.channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&self.pixels));
        written.map_err(|error| failed(std::io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_side_by_side() {
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let grey = Picture::of(&[2, 2, 2], &values).unwrap();
        assert_eq!((grey.width, grey.height), (4, 2));
        assert_eq!(grey.pixels, [0, 36, 146, 182, 73, 109, 219, 255]);
        let colours =
            Picture::of(&[1, 3, 2, 2], &[-1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).unwrap();
        assert_eq!(colours.pixels, [0, 128, 255, 128, 128, 255, 255, 128, 255, 255, 128, 255]);
        assert!(Picture::of(&[4, 2], &values).is_none() && Picture::of(&[1, 2, 2, 2], &values).is_none());
    }
}

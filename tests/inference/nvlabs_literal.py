"""StyleGAN2 written out in numpy and float64, with weights as NVlabs' files store them.

What is taken from the papers: modulation, demodulation, noise, bias and rectifier (Karras et al. 2020, section 2.2),
the sum of images and the residual discriminator (section 4.1), the mapping (Karras et al. 2019). What is the files'
own convention: every weight is multiplied by 1 / sqrt(fan-in) at run time, a mapping layer's weight and bias by 0.01
too; the kernel of a layer that doubles the resolution is convolved with, all others are correlated with.
"""

from __future__ import annotations

import numpy as np

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
SQRT2 = np.sqrt(2.0)


def correlate(x, kernel):
    """`[i, h, w]`, `[o, i, a, b]` -> `[o, h - a + 1, w - b + 1]`."""
    a, b = kernel.shape[2:]
    h, w = x.shape[1] - a + 1, x.shape[2] - b + 1
    return sum(
        np.einsum("oi,ihw->ohw", kernel[:, :, p, q], x[:, p : p + h, q : q + w]) for p in range(a) for q in range(b)
    )


def stuffed(x):
    """Every pixel is followed by a zero, in both directions."""
    y = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]))
    y[:, ::2, ::2] = x
    return y


def filtered(x, before, behind):
    """Zeros around, then [1, 3, 3, 1] (which is its own mirror image) in both directions."""
    x = np.pad(x, ((0, 0), (before, behind), (before, behind)))
    h, w = x.shape[1] - 3, x.shape[2] - 3
    return sum(TAPS[p, q] * x[:, p : p + h, q : q + w] for p in range(4) for q in range(4))


def lrelu(x):
    return np.where(x > 0, x, 0.2 * x) * SQRT2


def normalised(x):
    return x / np.sqrt(np.mean(x**2) + 1e-8)


class Literal:
    """The networks of one file: `weights` by name, such as G_ema.synthesis.b4.const."""

    def __init__(self, weights, network):
        self.weights = {
            key.removeprefix(f"{network}."): value.double().numpy()
            for key, value in weights.items()
            if key.startswith(f"{network}.")
        }

    def dense(self, name, x, multiplier=1.0):
        weight = self.weights[f"{name}.weight"]
        return weight @ x * (multiplier / np.sqrt(weight.shape[1])) + self.weights[f"{name}.bias"] * multiplier

    def mapped(self, latent, label, layers):
        parts = [] if latent is None else [normalised(latent)]
        if label is not None:
            hot = np.zeros(self.weights["mapping.embed.weight"].shape[1])
            hot[label] = 1
            parts.append(normalised(self.dense("mapping.embed", hot)))
        x = np.concatenate(parts)
        for number in range(layers):
            x = lrelu(self.dense(f"mapping.fc{number}", x, 0.01))
        return x

    def layer(self, name, x, w, up):
        """A modulated, demodulated convolution, noise, bias, rectifier."""
        kernel = self.weights[f"{name}.weight"] * self.dense(f"{name}.affine", w)[None, :, None, None]
        kernel = kernel / np.sqrt((kernel**2).sum((1, 2, 3), keepdims=True) + 1e-8)
        if up:
            # Doubled, with 3 zeros before and 2 behind: 1 for the kernel on both sides, 2 and 1 for the filter.
            x = correlate(4 * filtered(stuffed(x), 3, 2), kernel[:, :, ::-1, ::-1])
        else:
            x = correlate(np.pad(x, ((0, 0), (1, 1), (1, 1))), kernel)
        if f"{name}.noise_const" in self.weights:
            x = x + self.weights[f"{name}.noise_const"] * self.weights[f"{name}.noise_strength"]
        return lrelu(x + self.weights[f"{name}.bias"][:, None, None])

    def rgb(self, name, x, w):
        kernel = self.weights[f"{name}.weight"]
        kernel = kernel * self.dense(f"{name}.affine", w)[None, :, None, None] / np.sqrt(kernel.shape[1])
        return correlate(x, kernel) + self.weights[f"{name}.bias"][:, None, None]

    def image(self, latent, label, layers, resolution, truncation=1.0):
        w = self.mapped(latent, label, layers)
        average = self.weights["mapping.w_avg"]
        w = average + truncation * (w - average)
        x = self.layer("synthesis.b4.conv1", self.weights["synthesis.b4.const"], w, False)
        image = self.rgb("synthesis.b4.torgb", x, w)
        side = 8
        while side <= resolution:
            x = self.layer(f"synthesis.b{side}.conv0", x, w, True)
            x = self.layer(f"synthesis.b{side}.conv1", x, w, False)
            image = 4 * filtered(stuffed(image), 2, 1) + self.rgb(f"synthesis.b{side}.torgb", x, w)
            side *= 2
        return image

    def convolved(self, name, x, down=False):
        """A layer of the discriminator without bias and rectifier."""
        kernel = self.weights[f"{name}.weight"]
        kernel = kernel / np.sqrt(kernel[0].size)
        single = kernel.shape[2] == 1
        if down:
            x = filtered(x, 1, 1) if single else filtered(x, 2, 2)
            return correlate(x, kernel)[:, ::2, ::2]
        return correlate(x if single else np.pad(x, ((0, 0), (1, 1), (1, 1))), kernel)

    def activated(self, name, x, down=False):
        return lrelu(self.convolved(name, x, down) + self.weights[f"{name}.bias"][:, None, None])

    def scores(self, images, labels, resolution, residual):
        """Of one group of images."""
        features = []
        for x in images:
            x = self.activated(f"b{resolution}.fromrgb", x)
            side = resolution
            while side > 4:
                y = self.activated(f"b{side}.conv1", self.activated(f"b{side}.conv0", x), True)
                x = (y + self.convolved(f"b{side}.skip", x, True)) * np.sqrt(0.5) if residual else y
                side //= 2
            features.append(x)
        deviation = np.sqrt(np.var(features, axis=0) + 1e-8).mean()
        scores = []
        for number, x in enumerate(features):
            x = np.concatenate([x, np.full((1, 4, 4), deviation)])
            x = lrelu(self.dense("b4.fc", self.activated("b4.conv", x).reshape(-1)))
            x = self.dense("b4.out", x)
            if labels is not None:
                mapped = self.mapped(None, labels[number], 8)
                x = [(x * mapped).sum() / np.sqrt(len(mapped))]
            scores.append(x[0])
        return np.array(scores)

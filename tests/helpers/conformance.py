"""Conformance suite of `Prior`: a new prior's test class inherits it and gains these tests.

class TestMyPrior(PriorConformance):
    @pytest.fixture
    def prior(self):
        return MyPrior(...)
"""

import pytest
import torch

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import Prior
from ldd.priors.base import last_layer
from ldd.runtime.seeding import generator, seeded


class PriorConformance:
    """What codes, initialisers and objectives rely on.

    Attributes:
        known_classes: classes the prior under test knows; None if it knows every class.
        invertible: whether samples can be inverted; if not, that is refused.
        inversion_steps: steps of the inversion; it is exact only in the limit of many.
        inversion_error: bound on the relative distance from the noise to the inversion of its sample.
    """

    known_classes: tuple[ClassInfo, ...] | None = None
    invertible = True
    inversion_steps = 20
    inversion_error = 0.25

    @pytest.fixture
    def prior(self) -> Prior:
        raise NotImplementedError

    @pytest.fixture
    def rows(self, prior) -> torch.Tensor:
        return prior.rows((self.known_classes or (ClassInfo(0, 7, "a", "a"), ClassInfo(1, 3, "b", "b")))[:2])

    @pytest.fixture
    def codes(self, prior, rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents, noise = torch.randn(2, 2, *prior.latent_shape, generator=generator(0, "codes"))
        return latents, prior.embed(rows).detach().clone(), noise

    def test_frozen_in_eval_mode(self, prior):
        trainable = {id(parameter) for parameter in prior.trainable()}
        assert all(id(p) in trainable or not p.requires_grad for p in prior.parameters())
        assert not any(module.training for module in prior.modules())
        assert isinstance(prior.licence, str)
        assert prior.licence

    def test_shapes(self, prior, rows, codes):
        latents, conditioning, noise = codes
        assert rows.dtype == torch.int64
        assert conditioning.ndim == 3
        assert prior.null(2).shape == conditioning.shape
        with torch.no_grad():
            denoised = prior.denoise(latents, conditioning, noise)
            images = prior.decode(denoised)
        assert denoised.shape == latents.shape
        assert images.shape == (2, 3, prior.image_size, prior.image_size)

    def test_encode(self, prior):
        shape = (2, 3, prior.image_size, prior.image_size)
        images = (2 * torch.rand(shape, generator=generator(0, "images")) - 1).requires_grad_()
        if not prior.can_encode:
            with pytest.raises(UserError, match="has no encoder; start codes with"):
                prior.encode(images)
            return
        latents = prior.encode(images)
        assert latents.shape == (2, *prior.latent_shape)
        assert latents.dtype == images.dtype
        assert not latents.requires_grad
        assert latents.isfinite().all()
        torch.testing.assert_close(prior.encode(images[1:]), latents[1:], rtol=1e-4, atol=1e-4)
        decoded = prior.decode(latents)
        assert decoded.dtype == latents.dtype
        assert decoded.abs().max() < 10  # around [-1, 1], not 0..255

    def test_rows_follow_the_classes_and_refuse_unknown_ones(self, prior):
        if self.known_classes is None:
            assert prior.rows([ClassInfo(0, 5, "x", "x"), ClassInfo(1, 4, "y", "y")]).tolist() == [0, 1]
            return
        forwards = prior.rows(self.known_classes)
        assert forwards.shape == (len(self.known_classes),)
        assert forwards.unique().numel() == len(self.known_classes)
        assert prior.rows(self.known_classes[::-1]).tolist() == forwards.flip(0).tolist()
        with pytest.raises(UserError, match=r"does not know the classes n00000000 \(unheard-of\)") as error:
            prior.rows([*self.known_classes, ClassInfo(99, 99, "n00000000", "unheard-of")])
        assert self.known_classes[0].wnid in str(error.value)

    def test_differentiable_in_latents_and_conditioning(self, prior, codes):
        latents, conditioning, noise = codes
        latents.requires_grad_()
        conditioning.requires_grad_()
        images = prior.decode(prior.denoise(latents, conditioning, noise))
        gradients = torch.autograd.grad(images.square().sum(), [latents, conditioning], allow_unused=True)
        assert gradients[0].isfinite().all()
        assert gradients[0].abs().max() > 0
        if conditioning.numel():
            assert gradients[1].flatten(1).abs().amax(1).gt(0).all()

    def test_a_decoded_image_is_its_own_latents_unless_the_prior_says_otherwise(self, prior):
        prior, latents = prior.double(), torch.randn(3, *prior.latent_shape, generator=generator(0)).double()
        with torch.no_grad():
            alone = torch.cat([prior.decode(latents[i : i + 1]) for i in range(3)])
            distance = (prior.decode(latents) - alone).abs().max()
        assert distance > 1e-3 if prior.batch_dependent else distance < 1e-9

    def test_trainable_weights_start_anew_and_are_restored(self, prior):
        first = {name: value.detach().clone() for name, value in prior.trained().items()}
        assert all(value.requires_grad for value in prior.trained().values())
        frozen = {name: value.clone() for name, value in prior.state_dict().items() if name not in first}
        for _ in range(2):
            with seeded(1, "decoder"):
                prior.reset_trained()
            second = {name: value.detach().clone() for name, value in prior.trained().items()}
        assert all(not value.isnan().any() for value in second.values())
        assert not first or any(not torch.equal(first[name], second[name]) for name in first)
        prior.load_trained(first)
        assert all(torch.equal(value, first[name]) for name, value in prior.trained().items())
        now = prior.state_dict()
        assert all(torch.equal(now[name], value) for name, value in frozen.items())
        with pytest.raises(UserError, match=r"decoder: anything is \[3\], this \w+ needs none"):
            prior.load_trained({**first, "anything": torch.zeros(3)})

    def test_denoise_and_decode_are_deterministic(self, prior, codes):
        with torch.no_grad():
            first = prior.decode(prior.denoise(*codes))
            torch.rand(3)  # the global generator must not matter
            assert torch.equal(first, prior.decode(prior.denoise(*codes)))

    def test_batched_equals_one_by_one(self, prior, codes):
        prior, codes = prior.double(), [code.double() for code in codes]
        with torch.no_grad():
            batched = prior.denoise(*codes)
            single = torch.cat([prior.denoise(*(code[i : i + 1] for code in codes)) for i in range(2)])
        torch.testing.assert_close(batched, single, rtol=0, atol=1e-9)

    def test_double_precision_throughout(self, prior, codes):
        prior, codes = prior.double(), [code.double() for code in codes]
        denoised = prior.denoise(*codes)
        assert denoised.dtype == torch.float64
        assert prior.decode(denoised).dtype == torch.float64

    def test_autocast_stays_close(self, prior, codes):
        with torch.no_grad():
            exact = prior.decode(prior.denoise(*codes))
            with torch.autocast("cpu", torch.bfloat16):
                rough = prior.decode(prior.denoise(*codes))
        assert rough.dtype == torch.float32
        assert (rough - exact).norm() < 0.1 * exact.norm()  # bfloat16 carries 8 bits

    def test_in_bfloat16_it_stays_close_and_answers_in_single_precision(self, prior, codes):
        """All layers of frozen networks are in bfloat16 but the ones that answer, after which no other runs."""
        networks = list(prior.networks())
        with torch.no_grad():
            exact = prior.decode(prior.denoise(*codes))
            if not networks:
                return
            prior.to_bfloat16()
            ran: list[torch.nn.Module] = []
            for network in networks:
                for layer in network.modules():
                    if next(layer.parameters(recurse=False), None) is not None:
                        layer.register_forward_hook(lambda layer, inputs, output: ran.append(layer))
            found = prior.decode(prior.denoise(*codes))
        assert found.dtype == torch.float32
        assert 0 < (found - exact).norm() < 0.1 * exact.norm()
        assert ran[-1] is last_layer(networks[-1])
        last = {layer: max(k for k, of in enumerate(ran) if of is layer) for layer in set(ran)}
        for network in networks:
            layers = [layer for layer in last if layer in set(network.modules())]
            answers = last_layer(network)
            if layers:  # a prior may run without some of its networks
                assert max(layers, key=last.__getitem__) is answers
            kinds = {value.dtype for layer in layers if layer is not answers for value in layer.parameters()}
            assert kinds <= {torch.bfloat16}
            assert {value.dtype for value in answers.parameters()} == {torch.float32}

    def test_every_tensor_follows_the_prior_s_device(self, prior, rows, codes):
        """On the meta device, which refuses to mix with CPU tensors; rows and generators stay on the CPU."""
        prior.to("meta")
        prior.num_steps = min(prior.num_steps, 1)  # shape inference through a U-Net is slow
        latents, conditioning, noise = (code.to("meta") for code in codes)
        assert prior.decode(prior.denoise(latents, conditioning, noise)).device.type == "meta"
        if prior.can_encode:
            assert prior.encode(torch.zeros(1, 3, prior.image_size, prior.image_size, device="meta")).is_meta
        if prior.can_sample:
            assert prior.embed(rows).is_meta
            assert prior.sample(rows, generator(0), num_steps=1).is_meta
        if prior.can_sample and self.invertible:
            assert prior.invert(latents, conditioning, 1).is_meta

    def test_sample(self, prior, rows):
        if not prior.can_sample:
            with pytest.raises(UserError, match="no diffusion model and cannot sample"):
                prior.sample(rows, generator(0))
            return
        latents = prior.sample(rows, generator(0), num_steps=3)
        assert latents.shape == (2, *prior.latent_shape)
        assert not latents.requires_grad
        assert torch.equal(latents, prior.sample(rows, generator(0), num_steps=3))
        assert not torch.allclose(latents, prior.sample(rows, generator(1), num_steps=3))

    def test_inversion_returns_to_the_noise(self, prior, rows):
        if not prior.can_sample:
            with pytest.raises(UserError, match="no diffusion model and cannot invert"):
                prior.invert(torch.zeros(2, *prior.latent_shape), prior.null(2), 5)
            return
        if not self.invertible:
            with pytest.raises(UserError, match="cannot be inverted"):
                prior.invert(torch.zeros(2, *prior.latent_shape), prior.embed(rows), 5)
            return
        noise = torch.randn(2, *prior.latent_shape, generator=generator(0))
        sampled = prior.sample(rows, generator(0), num_steps=self.inversion_steps, guidance_scale=1.0)
        inverted = prior.invert(sampled, prior.embed(rows), self.inversion_steps)
        assert (inverted - noise).norm() < self.inversion_error * noise.norm()

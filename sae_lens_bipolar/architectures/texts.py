"""What the model card says of each architecture of a saved SAE: its formula and its papers."""

from typing import NamedTuple


class Formula(NamedTuple):
    """One architecture, as the card shows it."""

    title: str  # in words
    text: str  # the formula, plain text
    source: str  # the paper, for a reader
    cites: tuple[str, ...]  # keys of CITATIONS


_LINEAR = "u    = (x - b_dec) W_enc + b_enc\n"
_DECODE = "x̂    = z W_dec + b_dec"
RESCALED = (
    "(with |W_dec_i|, a latent's decoder norm: its pre-activation is multiplied by it\n"
    "before the selection, and the latent divided by it before decoding)"
)

FORMULAS = {
    "standard": Formula(
        "Standard (ReLU)",
        f"{_LINEAR}z    = relu(u)\n{_DECODE}",
        "arXiv 2309.08600",
        (),
    ),
    "topk": Formula(
        "TopK: the k largest pre-activations",
        f"{_LINEAR}z    = relu(u) on the k largest of u, else 0\n{_DECODE}",
        "arXiv 2406.04093",
        ("topk",),
    ),
    "jumprelu": Formula(
        "JumpReLU: a learned threshold a latent",
        f"{_LINEAR}z    = relu(u) where u > threshold, else 0\n{_DECODE}",
        "arXiv 2407.14435",
        ("jumprelu",),
    ),
    "gated": Formula(
        "Gated: one path decides whether a latent fires, another how strongly",
        f"v    = (x - b_dec) W_enc\nz    = 1[v + b_gate > 0] relu(exp(r_mag) v + b_mag)\n{_DECODE}",
        "arXiv 2404.16014",
        ("gated",),
    ),
    "abstopk": Formula(
        "AbsTopK: the k pre-activations of largest magnitude, signs kept",
        f"{_LINEAR}z    = u on the k largest of |u|, else 0\n{_DECODE}",
        "arXiv 2510.00404",
        ("abstopk",),
    ),
    "bi_topk": Formula(
        "Bi-TopK: top-k over both sides of every latent, with a bias a side",
        "v    = (x - b_dec) W_enc\n"
        "p+   = v + b+        p- = -v + b-\n"
        "z    = relu(p+) [p+ kept] - relu(p-) [p- kept]    kept: the k largest of all 2 d_sae\n"
        f"{_DECODE}\n"
        "with b+, b- = b_positive, b_negative",
        "after arXiv 2406.04093 and 2510.00404",
        ("topk", "abstopk"),
    ),
    "bi_jumprelu": Formula(
        "Bi-JumpReLU: a threshold on each side of a latent",
        f"{_LINEAR}z    = u where u > t+ or u < -t-, else 0\n{_DECODE}\n"
        "with t+, t- = threshold_positive, threshold_negative",
        "after arXiv 2407.14435 and 2510.00404",
        ("jumprelu", "abstopk"),
    ),
    "sign_aware_gated": Formula(
        "SA-GSAE: a gate with a dead zone between two thresholds, and magnitudes a side",
        "v    = (x - b_dec) W_enc\n"
        "g+   = 1[v > exp(t+)]              g- = 1[v < -exp(t-)]\n"
        "m+   = relu(exp(r+) v + b+)        m- = relu(-exp(r-) v + b-)\n"
        f"z    = g+ m+ - g- m-\n{_DECODE}\n"
        "with t, r, b = log_threshold, log_gain, b_mag: a row a side, or one that both share",
        "our reading of arXiv 2605.28149",
        ("sagsae", "gated"),
    ),
    "unrolled_abstopk": Formula(
        "Unrolled AbsTopK: T proximal gradient steps with learned step sizes",
        "v_1     = (x - b_dec) W_enc + b_enc\n"
        "v_{t+1} = z_t + μ_t ((x - b_dec - z_t W_dec) W_enc + b_enc)\n"
        "z_t     = v_t on the k largest of |v_t|, else 0        z = z_T\n"
        f"{_DECODE}\n"
        "with μ = exp(log_step_size)",
        "arXiv 2510.00404, equations 4 to 6",
        ("abstopk",),
    ),
}
SIGNED = ("abstopk", "bi_topk", "bi_jumprelu", "sign_aware_gated", "unrolled_abstopk")


def _article(key: str, title: str, author: str, year: int, arxiv: str) -> str:
    return (
        f"@article{{{key},\n  title  = {{{title}}},\n  author = {{{author}}},\n"
        f"  year   = {{{year}}},\n  journal = {{arXiv preprint arXiv:{arxiv}}}\n}}"
    )


CITATIONS = {
    "abstopk": _article(
        "zhu2025abstopk",
        "{AbsTopK}: Rethinking Sparse Autoencoders For Bidirectional Features",
        "Zhu, Xudong and Khalili, Mohammad Mahdi and Zhu, Zhihui",
        2025,
        "2510.00404",
    ),
    "sagsae": _article(
        "wieciech2026sagsae",
        "Sign-Aware Gated Sparse Autoencoders: Modeling Anticorrelated Features with "
        "{Bi-Jump-ReLU} Activations",
        "Wieciech and Czelej and Jaramillo Velasquez and Stobieniecka and Awrahman",
        2026,
        "2605.28149",
    ),
    "topk": _article(
        "gao2024scaling",
        "Scaling and evaluating sparse autoencoders",
        "Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan "
        "and Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey",
        2024,
        "2406.04093",
    ),
    "jumprelu": _article(
        "rajamanoharan2024jumprelu",
        "Jumping Ahead: Improving Reconstruction Fidelity with {JumpReLU} Sparse Autoencoders",
        "Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur and "
        "Varma, Vikrant and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel",
        2024,
        "2407.14435",
    ),
    "gated": _article(
        "rajamanoharan2024gated",
        "Improving Dictionary Learning with Gated Sparse Autoencoders",
        "Rajamanoharan, Senthooran and Conmy, Arthur and Smith, Lewis and Lieberum, Tom and Varma, "
        "Vikrant and Kram{\\'a}r, J{\\'a}nos and Shah, Rohin and Nanda, Neel",
        2024,
        "2404.16014",
    ),
    "saelens": (
        "@misc{bloom2024saelens,\n  title  = {SAELens},\n"
        "  author = {Bloom, Joseph and Tigges, Curt and Duong, Anthony and Chanin, David},\n"
        "  year   = {2024},\n  howpublished = {https://github.com/decoderesearch/SAELens}\n}"
    ),
}

"""The papers that the records of architectures cite, as BibTeX entries."""


def article(key: str, title: str, author: str, year: int, arxiv: str) -> str:
    """The BibTeX entry of a preprint on arXiv."""
    return (
        f"@article{{{key},\n  title  = {{{title}}},\n  author = {{{author}}},\n"
        f"  year   = {{{year}}},\n  journal = {{arXiv preprint arXiv:{arxiv}}}\n}}"
    )


ABSTOPK = article(
    "zhu2025abstopk",
    "{AbsTopK}: Rethinking Sparse Autoencoders For Bidirectional Features",
    "Zhu, Xudong and Khalili, Mohammad Mahdi and Zhu, Zhihui",
    2025,
    "2510.00404",
)
SAGSAE = article(
    "wieciech2026sagsae",
    "Sign-Aware Gated Sparse Autoencoders: Modeling Anticorrelated Features with "
    "{Bi-Jump-ReLU} Activations",
    "Wieciech and Czelej and Jaramillo Velasquez and Stobieniecka and Awrahman",
    2026,
    "2605.28149",
)
TOPK = article(
    "gao2024scaling",
    "Scaling and evaluating sparse autoencoders",
    "Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan "
    "and Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey",
    2024,
    "2406.04093",
)
JUMPRELU = article(
    "rajamanoharan2024jumprelu",
    "Jumping Ahead: Improving Reconstruction Fidelity with {JumpReLU} Sparse Autoencoders",
    "Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur and "
    "Varma, Vikrant and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel",
    2024,
    "2407.14435",
)
GATED = article(
    "rajamanoharan2024gated",
    "Improving Dictionary Learning with Gated Sparse Autoencoders",
    "Rajamanoharan, Senthooran and Conmy, Arthur and Smith, Lewis and Lieberum, Tom and Varma, "
    "Vikrant and Kram{\\'a}r, J{\\'a}nos and Shah, Rohin and Nanda, Neel",
    2024,
    "2404.16014",
)
BATCHTOPK = article(
    "bussmann2024batchtopk",
    "{BatchTopK} Sparse Autoencoders",
    "Bussmann, Bart and Leask, Patrick and Nanda, Neel",
    2024,
    "2412.06410",
)
MATRYOSHKA_SAE = article(
    "bussmann2025matryoshka",
    "Learning Multi-Level Features with Matryoshka Sparse Autoencoders",
    "Bussmann, Bart and Nabeshima, Noa and Karvonen, Adam and Nanda, Neel",
    2025,
    "2503.17547",
)
SAELENS = (
    "@misc{bloom2024saelens,\n  title  = {SAELens},\n"
    "  author = {Bloom, Joseph and Tigges, Curt and Duong, Anthony and Chanin, David},\n"
    "  year   = {2024},\n  howpublished = {https://github.com/decoderesearch/SAELens}\n}"
)
PACKAGE = (
    "@software{saelensbipolar,\n"
    "  title  = {sae-lens-bipolar: signed sparse autoencoders for SAELens},"
    "\n  author = {The sae-lens-bipolar authors},\n"
    "  url    = {https://github.com/sae-lens-bipolar/sae-lens-bipolar}\n}"
)

"""The site: `pip install -e '.[docs]' && sphinx-build -W --keep-going -n docs build/docs`."""

import importlib
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.autodoc.mock import mock

sys.path.insert(0, str(Path(__file__).parent))

import pictures

import cattn

HERE = Path(__file__).parent

project = "cattn"
author = "cattn contributors"
copyright = "cattn contributors, BSD-3-Clause"
version = release = cattn.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
exclude_patterns = ["_generated/*.md"]
root_doc = "index"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
default_role = "autolink"  # what docstrings put in single backticks is a link where such a name exists
autosummary_generate = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|np|matplotlib|transformers|dask)\..*")]

# The modules for other libraries are read without these, which are large: only their docstrings are needed here.
with mock(["torch", "transformers"]):
    importlib.import_module("transformers").__version__ = "5.0"
    # The signatures of these two functions are asked for at import.
    importlib.import_module("torch.nn.functional").multi_head_attention_forward = lambda need_weights: None
    importlib.import_module("transformers.integrations.sdpa_attention").sdpa_attention_forward = lambda: None
    for name in ("flash_attn", "torch", "transformers", "dask"):
        importlib.import_module(f"cattn.{name}")

html_theme = "pydata_sphinx_theme"
html_title = f"cattn {version}"
html_static_path = ["_static"]
html_css_files = ["cattn.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_sidebars = {"*": []}  # but the guide and the API have one
html_theme_options = {
    "logo": {"text": "cattn"},
    "header_links_before_dropdown": 10,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


class Picture(Directive):
    """`{picture} NAME`, with what it shows as content: one of `pictures`, drawn for the light and the dark theme."""

    required_arguments = 1
    has_content = True

    def run(self):
        name, alt = self.arguments[0], " ".join(self.content)
        return [
            nodes.image(uri=f"/_generated/{name}-{theme}.svg", alt=alt, classes=["picture", f"only-{theme}"])
            for theme in pictures.THEMES
        ]


def mathml(of_block):
    """Formulas as MathML, which browsers draw themselves: the pages ask no other server for anything."""

    def visit(translator, node):
        translator.body.append(tex2mathml(node.astext(), as_block=of_block).strip())
        raise nodes.SkipNode

    return visit, None


def setup(app):
    app.add_directive("picture", Picture)
    app.add_html_math_renderer("mathml", inline_renderers=mathml(False), block_renderers=mathml(True))
    app.connect("builder-inited", lambda app: pictures.draw_all(HERE / "_generated"))

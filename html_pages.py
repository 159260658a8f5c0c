"""For `jupyter nbconvert --config html_pages.py --to html`: folded cells without code, pictures with a sentence."""

from html import escape

from nbconvert.preprocessors import Preprocessor


class Page(Preprocessor):
    """nbconvert's template shows the code of folded cells, and drops what a picture says of itself."""

    def preprocess_cell(self, cell, resources, index):
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                png = output["data"].pop("image/png").replace("\n", "")
                output["data"]["text/html"] = f'<img alt="{escape(alt)}" src="data:image/png;base64,{png}">'
        return cell, resources


c = get_config()  # noqa: F821
c.HTMLExporter.preprocessors = [Page]

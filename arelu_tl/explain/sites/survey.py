"""Apply surgery to one of timm's architectures and count its sites."""

from __future__ import annotations

from collections import Counter

import timm
import torch

from arelu_tl.activation.arelu import named_arelus
from arelu_tl.errors import NoSitesError, SurgeryError
from arelu_tl.explain.sites.survey_table import SurveyRow
from arelu_tl.surgery.convert import convert


def survey(name: str) -> SurveyRow:
    """Build the architecture on the meta device, convert it, and count its sites.

    A site without an AReLU of its own is reported as a refusal.
    """
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        report = convert(model)
    except NoSitesError:
        return SurveyRow(name)
    except (SurgeryError, RuntimeError) as error:
        return SurveyRow(name, refusal=" ".join(str(error).split())[:200])
    sites = [planned.site for planned in report.sites if planned.site.runs]
    kinds, roles = Counter(s.kind for s in sites), Counter(s.role for s in sites)
    arelus = [module for _, module in named_arelus(model)]
    own = {id(p) for module in arelus for p in (module.alpha, module.beta)}
    refusal = ""
    if not report.replaced == len(arelus) == len(own) // 2 == len(sites):
        refusal = f"{len(sites)} sites, {report.replaced} replaced by {len(arelus)} AReLUs"
    return SurveyRow(
        name,
        sites=len(sites),
        module=kinds["module"],
        shared=kinds["shared"],
        functional=kinds["functional"],
        relu6=sum(s.operator == "relu6" for s in sites),
        squeeze_excite=roles["squeeze-excite"],
        squared=roles["squared"],
        refusal=refusal,
    )

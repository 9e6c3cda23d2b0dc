"""CamemBERT: `transformers.CamembertModel` and every head class on it, which are RoBERTa's under another name."""

from transformers import CamembertConfig, CamembertTokenizer
from transformers.models.camembert import modeling_camembert

from .roberta import roberta_family

FAMILY = roberta_family("CamemBERT", modeling_camembert, "Camembert", CamembertConfig, CamembertTokenizer)

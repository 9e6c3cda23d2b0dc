"""XLM-RoBERTa: `transformers.XLMRobertaModel` and every head class on it, which are RoBERTa's under another name."""

from transformers import XLMRobertaConfig, XLMRobertaTokenizer
from transformers.models.xlm_roberta import modeling_xlm_roberta

from .roberta import roberta_family

FAMILY = roberta_family("XLM-RoBERTa", modeling_xlm_roberta, "XLMRoberta", XLMRobertaConfig, XLMRobertaTokenizer)

"""Measuring fastcnn beside cuDNN, ATen and torch.compile."""
